# HCDORN: DORN with the plain ResNet-101, of output stride 32, which clusters in its last two
# stages. The head decodes its feature by the clusters to the size that dilation gives it in DORN.
_base_ = 'dorn_r101.py'

model = dict(
    backbone=dict(type='HCResNet', levels=2, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
    decode_head=dict(feature_size=(9, 12), pool_size=2),
)
