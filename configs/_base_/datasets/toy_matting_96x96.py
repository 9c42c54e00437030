# What `sapa-mm toy-data --layouts matting` makes.
_base_ = 'composition1k_512x512.py'

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
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
