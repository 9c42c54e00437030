# What `sapa-mm toy-data --layouts matting` makes.
data_root = 'data/toy/matting'
crop_size = (96, 96)

train_pipeline = [
    dict(type='LoadComposition'),
    dict(type='AddForeground', prob=0.5),
    dict(type='ResizeSquare', prob=0.25, size=120),
    dict(type='RandomAffineForeground'),
    dict(type='MakeTrimap', diameters=(1, 15)),
    dict(type='CropUnknown', size=crop_size[0]),
    dict(type='JitterForeground'),
    dict(type='Composite'),
    dict(type='PackMatting'),
]
test_pipeline = [dict(type='LoadComposition'), dict(type='PackMatting')]

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CompositionDataset',
        data_root=data_root,
        data_prefix=dict(fg='Training_set/fg', alpha='Training_set/alpha', bg='Training_set/bg'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CompositionDataset',
        data_root=data_root,
        data_prefix=dict(img='Test_set/merged', alpha='Test_set/alpha', trimap='Test_set/trimaps'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='MattingMetric')
test_evaluator = val_evaluator
