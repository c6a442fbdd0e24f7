"""Zero-shot action recognition, CLIP ViT-B/16 over 16 frames, HMDB51, split 1: softmax of 100 times the cosine of the
frames' mean embedding with the text features of the classes, averaged over 10 clips of 3 crops.

    mmpetl fetch clip-vit-base-p16 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    python tools/text_features.py clip-vit-base-p16 --videos hmdb51
    python tools/test.py configs/apt/zeroshot_clip-vit-base-p16_openai-pre_16x4_hmdb51.py

Trainable: 0.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/clip-vit-base-p16_frames_text.py',
    '../_base_/datasets/hmdb51_16x4.py'
]
train_dataloader = None
val_cfg = dict()
test_cfg = dict()
