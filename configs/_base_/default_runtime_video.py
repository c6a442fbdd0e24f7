"""What every video config shares. Importing mmpetl registers its types and puts its remedies for the pinned stack in
place."""

custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
default_scope = 'mmaction'
default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, ignore_last=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmpetl.CheckpointHook', interval=1, max_keep_ckpts=1, save_best='acc/top1', rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'))
# adapter.safetensors in the work dir, small checkpoints, the table of what trains; then a check of the first iteration.
custom_hooks = [dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook')]
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='ActionVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, deterministic=False)
