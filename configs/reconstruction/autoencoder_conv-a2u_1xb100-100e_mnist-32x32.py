_base_ = [
    '../_base_/models/reconstruction_autoencoder.py',
    '../_base_/upsamplers/reconstruction_a2u.py',
    '../_base_/datasets/mnist_32x32.py',
    '../_base_/schedules/reconstruction_100e.py',
]

model = dict(
    downsample_cfg=dict(type='conv'),
    upsample_cfg=_base_.upsampler,
)
