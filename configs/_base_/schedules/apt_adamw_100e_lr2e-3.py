"""APT's recipe with the rate 0.002 for 256 videos, for methods whose rate is not published; the lowest rate stays
1e-6 for 256 videos.

"""

_base_ = './apt_adamw_100e.py'
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min_ratio=5e-4)]
