# SegFormer small enough to train from scratch in minutes on two CPU cores, on the toy scenes of
# tools/make_toy_dataset.py. The head is SegFormer's own, which upsamples bilinearly.
_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
data_root = 'data/toy/ade'
# The classes of ADE20K that the scenes have.
classes = (
    'wall',
    'sky',
    'grass',
    'earth',
    'plant',
    'chair',
    'ball',
    'animal',
    'bicycle',
    'vase',
    'flag',
)
crop_size = (160, 160)
iterations = 600

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        init_cfg=None,
        embed_dims=16,
        num_heads=[1, 2, 4, 8],
        num_layers=[1, 1, 2, 1],
        drop_path_rate=0.0,
    ),
    decode_head=dict(
        in_channels=[16, 32, 64, 128],
        channels=64,
        num_classes=len(classes),
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, metainfo=dict(classes=classes), pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, metainfo=dict(classes=classes), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='BoundaryIoU')]
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=0.001),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=1.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=30, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=100, max_keep_ckpts=1),
)
randomness = dict(seed=0)
