_base_ = [
    '../_base_/models/reconstruction_autoencoder.py',
    '../_base_/datasets/mnist_32x32.py',
    '../_base_/schedules/reconstruction_100e.py',
]

model = dict(
    downsample_cfg=dict(type='max_pool'),
    # The paper's "context + linear": 4 x 4 convolutions, and nothing after them.
    upsample_cfg=dict(type='IndexNet', variant='o2o', context=True, nonlinear=False),
)
