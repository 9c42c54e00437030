# CamVid in SegNet's version of 11 classes, trained on crops; as for SegNet, the data lie in
# data/camvid/{images,annotations}/{training,validation,test}.
_base_ = 'camvid_360x480.py'

crop_size = (192, 256)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    # Its schedule counts iterations.
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')
    ),
)
test_dataloader = dict(num_workers=0, persistent_workers=False)
# What shows where upsampling matters: boundaries of three widths, and every class.
test_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU']),
    dict(type='BoundaryIoU', widths=[2, 4], per_class=True),
]
