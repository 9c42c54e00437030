# HCDORN likewise: stride 32, decoded by the clusters of the last two stages.
_base_ = 'dorn-tiny_r18_1xb8-500_toy-161x161.py'

model = dict(
    backbone=dict(type='HCResNet', levels=2, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
    decode_head=dict(feature_size=(6, 6), pool_size=2),
)
