_base_ = [
    '../_base_/models/reconstruction_autoencoder.py',
    '../_base_/datasets/mnist_32x32.py',
    '../_base_/schedules/reconstruction_100e.py',
]

model = dict(
    downsample_cfg=dict(type='max_pool'),
    upsample_cfg=dict(type='CARAFE', kernel_size=1),
)
