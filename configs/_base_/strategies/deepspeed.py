"""DeepSpeed, ZeRO stage 2: optimizer state and gradients are shared out. Needs pip install deepspeed and
tools/dist_train.sh.

The optimizer wrapper of the config is taken over as it is. ``strategy.config`` takes the entries of DeepSpeed's own
configuration.
"""

runner_type = 'FlexibleRunner'
strategy = dict(type='mmpetl.DeepSpeedStrategy', zero_optimization=dict(stage=2))
