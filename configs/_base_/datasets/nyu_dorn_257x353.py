# NYU Depth v2 as DORN trains on it: 257 x 353 pixels are 32 x 44 steps of 8. Predictions are
# brought back to 480 x 640 before they are judged. How the data lie nyu_bts_416x544.py says.
_base_ = 'nyu_bts_416x544.py'

crop_size = (257, 353)
meta_keys = _base_.meta_keys
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadDepthMap', depth_rescale_factor=1e-3),
    # 480 x 640 becomes 288 x 384.
    dict(type='Resize', scale=(384, 288), keep_ratio=False),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='BTSColorAugmentation'),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(353, 257), keep_ratio=False),
    dict(type='LoadDepthMap', depth_rescale_factor=1e-3),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=3,
    # Its schedule counts iterations.
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
