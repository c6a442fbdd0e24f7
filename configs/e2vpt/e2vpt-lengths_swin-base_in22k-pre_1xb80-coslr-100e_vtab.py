"""E2VPT without pruning, Swin-B supervised on ImageNet-22k, VTAB-1k: prompt lengths by grid (arXiv 2307.13770).

    mmpetl fetch swin-base-in22k vtab
    mmpetl sweep configs/e2vpt/e2vpt-lengths_swin-base_in22k-pre_1xb80-coslr-100e_vtab.py --suite vtab --tasks kitti

Four lengths times ten rates times four decays, 160 trainings per task, on the validation images: for the 15 tasks
whose commands are not released. The lengths are those that the released commands try.
Trainable with P prompts: 12,032 (P + 1) in the method, 1,025 per class in the head.
Expected, published with pruning, Natural / Specialized / Structured: 83.31 / 84.95 / 57.35. Measured: unknown.
"""

_base_ = './e2vpt_swin-base_in22k-pre_1xb80-coslr-100e_vtab.py'
sweep = dict(grid={'model.backbone.petl.0.num_tokens': [1, 5, 10, 32]})
