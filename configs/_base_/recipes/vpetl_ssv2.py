"""Video Swin-B, Something-Something V2, the recipe of V-PETL."""

_base_ = [
    '../default_runtime_video.py', '../backbones/video-swin-base.py', '../datasets/ssv2_8x4.py',
    '../schedules/vpetl_sgd_90e.py'
]
