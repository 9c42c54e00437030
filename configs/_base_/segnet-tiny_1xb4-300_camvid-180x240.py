# SegNet small enough to train on CamVid in minutes on one CPU core, from scratch.
_base_ = [
    'models/segnet_tiny.py',
    'datasets/camvid_180x240.py',
    'schedules/segnet_300.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(
        num_classes=11,
        loss_decode=dict(
            _delete_=True, type='BalancedCrossEntropyLoss', class_weight=_base_.class_weight
        ),
    ),
)
