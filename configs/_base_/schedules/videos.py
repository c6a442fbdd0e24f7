"""What the schedules of videos share: loops, a validation after every epoch, and the rate scaled to the actual number
of videos per step."""

train_cfg = dict(type='EpochBasedTrainLoop', val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', constructor='mmpetl.TrainableOptimWrapperConstructor')
auto_scale_lr = dict(base_batch_size=256, enable=True)
