"""ELEVATER's recipe: SGD with momentum, 50 epochs (10 while searching), constant rate, weight decay on every trainable
tensor.

Learning rate and weight decay are searched for each data set ('mmpetl sweep'): six rates times a coarse-to-fine walk
over 97 decays. The values here are for a single run. Testing is done once, after the last epoch.
"""

_base_ = './pictures.py'
max_epochs = 50
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4))
param_scheduler = None
auto_scale_lr = dict(base_batch_size=64)
sweep = dict(search='coarse_to_fine', search_epochs=10, shot_seeds=[0, 1, 2], seeds=[0])
