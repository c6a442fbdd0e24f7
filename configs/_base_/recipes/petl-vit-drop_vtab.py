"""As petl-vit_vtab.py, and as published with drop-path in the frozen base, which therefore stays in train mode; an
epoch leaves out its last, smaller batch."""

_base_ = './petl-vit_vtab.py'
model = dict(backbone=dict(drop_path_rate=0.1, trunk='train'))
train_dataloader = dict(drop_last=True)
