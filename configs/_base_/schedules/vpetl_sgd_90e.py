"""V-PETL's recipe with its default of 90 epochs, for Something-Something V2.

"""

_base_ = './vpetl_sgd_70e.py'
max_epochs = 90
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs - 10, end=max_epochs),
]
