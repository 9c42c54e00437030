_base_ = [
    '../_base_/models/reconstruction_autoencoder.py',
    '../_base_/datasets/mnist_32x32.py',
    '../_base_/schedules/reconstruction_100e.py',
]

model = dict(
    downsample_cfg=dict(type='paired'),
    upsample_cfg=dict(type='IndexNet', variant='m2o'),
)
