# DORN's: SGD whose learning rate, 1e-4 in the backbone, falls by a power of 0.9; it is 10 times as
# large in the head, and 20 times for its biases. The papers leave most of it open, so that these
# figures are a choice.
_base_ = '../depth_runtime.py'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)), bias_lr_mult=2.0),
)
iterations = 3_000_000
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=iterations, by_epoch=False)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations // 100)
default_hooks = dict(checkpoint=dict(interval=iterations // 100))
