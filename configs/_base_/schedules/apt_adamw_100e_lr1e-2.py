"""APT's recipe with the rate 0.01 for 256 videos, as published for the linear probe (UCF101, ViT-B) and for a script
of HMDB51 with ViT-S; the lowest rate stays 1e-6 for 256 videos.

"""

_base_ = './apt_adamw_100e.py'
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min_ratio=1e-4)]
