# DORN small enough to train from scratch in minutes on two CPU cores, on the toy rooms that
# `sapa-mm toy-data --layouts depth` makes.
_base_ = [
    '../_base_/models/dorn_r101.py',
    '../_base_/datasets/toy_depth_161x161.py',
    '../_base_/schedules/toy_depth_500.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        depth=18,
        stem_channels=16,
        base_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=dict(type='BN', requires_grad=True),
        init_cfg=None,
    ),
    decode_head=dict(in_channels=128, feature_size=(21, 21), channels=32, num_bins=32),
)
