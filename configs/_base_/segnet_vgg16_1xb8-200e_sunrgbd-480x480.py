# SegNet on SUN RGB-D as the SAPA paper's supplement (S3) trains it.
_base_ = [
    'models/segnet_vgg16.py',
    'datasets/sun_rgbd_480x480.py',
    'schedules/segnet_200e.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=37),
)
