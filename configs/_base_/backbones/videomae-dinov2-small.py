"""DINOv2 ViT-S/14 inflated to a VideoMAE ViT on 8 frames of 70 px (4 x 5 x 5 tokens); mean over all tokens, norm ->
linear head.

Weights: python tools/prepare_motion_clips.py
The image model knows no time, so a fixed code of time is added to its positions; without it
(videomae_dinov2s_untimed.safetensors) the output does not depend on the order of the frame pairs.
"""

_base_ = './videomae-small.py'
model = dict(
    backbone=dict(
        img_size=70,
        patch_size=14,
        num_frames=8,
        tubelet_size=2,
        init_values=1e-5,  # DINOv2's layer scale, loaded with the weights
        init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_dinov2s.safetensors')),
    cls_head=dict(num_classes=6, init_scale=1.))
