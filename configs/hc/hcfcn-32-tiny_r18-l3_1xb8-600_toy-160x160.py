# A narrow HCFCN-32 that trains from scratch in minutes on two CPU cores, on the toy scenes of
# tools/make_toy_dataset.py.
_base_ = '../_base_/segformer_mit-t_1xb8-600_toy-160x160.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='SuperpixelEncoderDecoder',
    backbone=dict(
        _delete_=True,
        type='HCResNet',
        depth=18,
        levels=3,
        stem_channels=32,
        base_channels=32,
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        _delete_=True,
        type='HCHead',
        head_type='FCNHead',
        in_channels=256,
        in_index=3,
        channels=64,
        num_classes=len(_base_.classes),
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
val_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU']),
    dict(type='BoundaryIoU'),
    dict(type='SuperpixelMetric'),
]
test_evaluator = val_evaluator
custom_hooks = [dict(type='SuperpixelVisualizationHook', interval=8)]
