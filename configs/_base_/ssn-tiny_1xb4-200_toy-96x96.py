# SSN small enough to train in a minute on a CPU core, on what `sapa-mm toy-data --layouts bsds`
# makes.
_base_ = ['models/ssn.py', 'datasets/toy_bsds_96x96.py', 'schedules/ssn_short.py']

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    base_channels=16,
    train_cfg=dict(num_superpixels=36),
    test_cfg=dict(numbers=(50, 100)),
)
iterations = 200
train_cfg = dict(max_iters=iterations, val_interval=iterations)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=20, end=iterations),
]
