# The HC paper's (section 4.3): Adam, 5e-5 to 5e-7 along a cosine. mmseg's trainer counts the rest.
_base_ = '../superpixel_runtime.py'

iterations = 300_000
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=5e-5))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=iterations, eta_min=5e-7, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations // 30)
default_hooks = dict(checkpoint=dict(interval=iterations // 30))
