"""FSDP: every process keeps a part of each block. For a config's list of bases; training then needs
tools/dist_train.sh.

Each block of the base is one unit, so a frozen block costs a share of its weights and nothing else.
``strategy.model_wrapper`` takes the arguments of torch's FullyShardedDataParallel, such as
``mixed_precision=dict(param_dtype='bfloat16', reduce_dtype='float32')``.
"""

runner_type = 'FlexibleRunner'
strategy = dict(type='mmpetl.FSDPStrategy')
