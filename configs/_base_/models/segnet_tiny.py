# SegNet-Basic, four stages of one convolution, with 24 channels and 5 x 5 kernels in place of 64
# channels and 7 x 7.
_base_ = 'segnet_vgg16.py'

width = 24
model = dict(
    backbone=dict(
        _delete_=True, type='SegNetBasic', base_channels=width, kernel_size=5, num_stages=4
    ),
    decode_head=dict(
        in_channels=(width,) * 5,
        widths=((width,),) * 4,
        kernel_size=5,
        cls_kernel_size=1,
        activate=False,
    ),
)
