# The A2U paper's: Adam for 30 epochs of 6,000 batches, and a hundredth of the rate for the encoder.
# The framework whose train script is run; nothing else here is mmsegmentation's.
default_scope = 'mmseg'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=0.01),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.01)}),
)
param_scheduler = dict(type='MultiStepLR', milestones=[120000, 156000], gamma=0.1, by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=180000, val_interval=18000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=6000,
        max_keep_ckpts=3,
        save_best='SAD',
        rule='less',
    ),
)
log_processor = dict(by_epoch=False)
env_cfg = dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl'))
