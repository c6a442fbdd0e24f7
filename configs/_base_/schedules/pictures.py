"""What the schedules of pictures share: loops without options, and the optimizer over what trains."""

val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', constructor='mmpetl.TrainableOptimWrapperConstructor')
