"""What every config shares. Importing mmpetl registers its types and puts its remedies for the pinned stack in
place."""

custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmpetl.CheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'))
# adapter.safetensors in the work dir, small checkpoints, the table of what trains; then a check of the first iteration.
custom_hooks = [dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook')]
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(vis_backends=vis_backends)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, deterministic=False)
