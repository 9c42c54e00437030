# BSDS500: the 200 training images, one annotator drawn for a sample; all annotators when testing.
data_root = 'data/bsds500'
crop_size = (208, 208)
meta_keys = (
    'img_path', 'seg_map_path', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip',
    'flip_direction', 'annotations',
)  # fmt: skip
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadBSDSAnnotations', annotator='random'),
    dict(type='ConvertToLab'),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadBSDSAnnotations', annotator='all'),
    dict(type='ConvertToLab'),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BSDS500Dataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/train', seg_map_path='groundTruth/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BSDS500Dataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/val', seg_map_path='groundTruth/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BSDS500Dataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/test', seg_map_path='groundTruth/test'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='SuperpixelMetric')
test_evaluator = val_evaluator
