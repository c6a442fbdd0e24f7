"""DualPath (arXiv 2303.09857) on CLIP ViT-B/16, 16 frames as a grid of 4 x 4 and 8 single frames, HMDB51, split 1,
schedule of APT.

    mmpetl fetch clip-vit-base-p16 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/dualpath_clip-vit-base-p16_openai-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 18,134,067 (17,903,616 + 152,064 in class token and positions, which the published code trains too, and the
head).
The published head has a hidden layer behind CLIP's projection, and the published runs have a schedule of their own; no
row of this setting is known.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/clip-vit-base-p16_frames.py',
    '../_base_/datasets/hmdb51_16x4.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py'
]
model = dict(
    backbone=dict(petl=[dict(type='DualPath', frame_grid=(4, 4), spatial_frames=8)], tune=['cls_token', 'pos_embed']),
    cls_head=dict(in_channels=1536, num_classes=51, label_smooth_eps=0.1))
