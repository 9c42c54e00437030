# A SegNet of reduced width: one 5 x 5 convolution a stage, as in SegNet-Basic, but five stages that
# grow wider, and ReLUs in the decoder, as in SegNet.
_base_ = 'segnet_vgg16.py'

model = dict(
    backbone=dict(
        _delete_=True, type='SegNetBasic', channels=(16, 32, 64, 128, 128), kernel_size=5
    ),
    decode_head=dict(
        in_channels=(16, 32, 64, 128, 128, 128),
        widths=((128,), (64,), (32,), (16,), (16,)),
        kernel_size=5,
    ),
)
