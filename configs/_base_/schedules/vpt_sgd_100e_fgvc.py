"""As vpt_sgd_100e.py with FGVC's grid, which has no 0.05.

"""

_base_ = './vpt_sgd_100e.py'
sweep = dict(grid={'optim_wrapper.optimizer.lr': [.1, .25, .5, 1., 2.5, 5., 10., 25., 50.]})
