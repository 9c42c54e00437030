# SegNet small enough to train on CamVid in minutes on one CPU core, from scratch.
_base_ = [
    'models/segnet_tiny.py',
    'datasets/camvid_180x240.py',
    'mmseg::_base_/default_runtime.py',
    'schedules/segnet_500.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(
        num_classes=11,
        # SegNet's balance of the classes: the median of their frequencies in the training images
        # where they occur, divided by their own.
        loss_decode=dict(
            _delete_=True,
            type='BalancedCrossEntropyLoss',
            class_weight=[
                0.2793,
                0.2017,
                4.7865,
                0.149,
                1.0,
                0.4217,
                3.8467,
                1.9736,
                0.7889,
                6.3747,
                8.8587,
            ],
        ),
    ),
)
