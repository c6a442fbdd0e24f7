"""Video Swin-B, HMDB51, the recipe of V-PETL."""

_base_ = [
    '../default_runtime_video.py', '../backbones/video-swin-base.py', '../datasets/hmdb51_8x2.py',
    '../schedules/vpetl_sgd_70e.py'
]
