# SegNet on its own data set, with the schedule that the SAPA paper has on SUN RGB-D. That CamVid
# shares it is this project's choice; the classes are balanced as SegNet's authors do.
_base_ = [
    'models/segnet_vgg16.py',
    'datasets/camvid_360x480.py',
    'schedules/segnet_200e.py',
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
