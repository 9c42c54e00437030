# The HC paper's for Cityscapes: SGD with momentum 0.9 and learning rate 0.01 that falls to 0 by a
# power of 0.9.
_base_ = 'mmseg::_base_/schedules/schedule_80k.py'

iterations = 50000
param_scheduler = [
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=iterations, by_epoch=False)
]
train_cfg = dict(max_iters=iterations, val_interval=iterations // 10)
default_hooks = dict(checkpoint=dict(interval=iterations // 10))
