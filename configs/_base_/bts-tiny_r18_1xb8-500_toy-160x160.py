# BTS small enough to train from scratch in minutes on two CPU cores, on the toy rooms that
# `sapa-mm toy-data --layouts depth` makes.
_base_ = ['models/bts_r50.py', 'datasets/toy_depth_160x160.py', 'schedules/toy_depth_500.py']

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        depth=18,
        stem_channels=16,
        base_channels=16,
        freeze_first_conv=False,
        freeze_norm_affine=False,
        init_cfg=None,
    ),
    decode_head=dict(in_channels=(16, 16, 32, 64, 128), bts_size=128),
)
