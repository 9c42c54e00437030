# mmseg's, with the hooks of its schedules, and the checkpoint by superpixels.
_base_ = 'mmseg::_base_/default_runtime.py'

val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        max_keep_ckpts=3,
        save_best='ASA/k100',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
