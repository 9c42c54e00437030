# The images of `sapa-mm toy-data --layouts bsds`, with several annotations each.
_base_ = 'bsds500_208x208.py'

data_root = 'data/toy/bsds'
crop_size = (96, 96)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadBSDSAnnotations', annotator='random'),
    dict(type='ConvertToLab'),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
# There is no third part.
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
val_dataloader = test_dataloader
val_dataloader['dataset']['data_prefix'] = dict(
    img_path='images/test', seg_map_path='groundTruth/test'
)
