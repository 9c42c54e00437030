# A few minutes on a CPU core; the encoder, which starts from scratch, learns at the full rate.
_base_ = 'matting_180k.py'

iterations = 400
optim_wrapper = dict(optimizer=dict(lr=0.005), paramwise_cfg=dict(_delete_=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', eta_min=5e-5, by_epoch=False, begin=20, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=100, max_keep_ckpts=1, save_best=None)
)
randomness = dict(seed=0)
