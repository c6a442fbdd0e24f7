"""Linear probe on Video Swin-B, HMDB51, split 1 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    python tools/train.py configs/vpetl/linear_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51.py

Trainable: 52,275 (0 + 52,275 in the head).
Recipe: the command of the published README (half precision there: --amp).
The head trains too (the published default leaves it random and frozen by mistake).
Expected top-1 in %: published 71.28 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_hmdb51.py'
