"""DINOv2 ViT-S/14 inflated to videos, Motion6, a few minutes on two CPU cores."""

_base_ = [
    '../default_runtime_video.py', '../backbones/videomae-dinov2-small.py', '../datasets/motion6.py',
    '../schedules/video_demo.py'
]
