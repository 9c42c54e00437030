# Static, filters of their own for every channel and pixel of a block, a gate rather than a window.
upsampler = dict(
    type='A2U',
    mode='static',
    channel_wise=True,
    point_wise=True,
    kernel_size=1,
    encoder_kernel=4,
)
