"""As vpt_sgd_100e.py with FGVC's grid, which has no 0.05.

"""

_base_ = './vpt_sgd_100e.py'
sweep = dict(grid={'optim_wrapper.optimizer.lr': [50., 25., 10., 5., 2.5, 1., .5, .25, .1]})
