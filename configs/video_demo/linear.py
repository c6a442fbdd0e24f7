"""Linear probe on the inflated DINOv2 ViT-S/14, Motion6.

    python tools/prepare_motion_clips.py
    python tools/train.py configs/video_demo/linear.py

Trainable: 3,078 (norm and head).
Accuracy on the 180 test clips: 66.1 % over 2 clips x 3 crops, 60.0 % with a single view; measured, one seed.
"""

_base_ = '../_base_/recipes/video_demo.py'
optim_wrapper = dict(optimizer=dict(lr=1e-2))
