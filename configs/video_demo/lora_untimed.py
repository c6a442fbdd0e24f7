"""LoRA on q, k and v, blind to the order of the frames on the inflated DINOv2 ViT-S/14, Motion6.

    python tools/prepare_motion_clips.py
    python tools/train.py configs/video_demo/lora_untimed.py

Trainable: 224,262 (221,184 + 3,078 in norm and head).
The control: the inflated model without the code of time cannot tell a clip from its reverse, so it is right about half
of the time at best. Accuracy on the 180 test clips: 51.7 % over 2 clips x 3 crops, 51.1 % with a single view; measured,
one seed.
"""

_base_ = '../_base_/recipes/video_demo.py'
model = dict(
    backbone=dict(
        petl=[dict(type='LoRA', rank=8, alpha=16, ops='qkv')],
        init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_dinov2s_untimed.safetensors')))
optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(custom_keys={'cls_head.': dict(lr_mult=10)}))
