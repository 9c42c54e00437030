# The rooms of `sapa-mm toy-data --layouts depth`.
_base_ = 'nyu_bts_416x544.py'

data_root = 'data/toy/depth'
crop_size = (160, 160)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadDepthMap', depth_rescale_factor=1e-3),
    dict(type='RandomFlip', prob=0.5),
    dict(type='BTSColorAugmentation'),
    dict(type='PackSegInputs', meta_keys=_base_.meta_keys),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='EigenDepthMetric', min_depth=1e-3, max_depth=10.0),
    dict(type='DepthBoundaryError'),
]
test_evaluator = val_evaluator
