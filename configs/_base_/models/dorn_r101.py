# DORN for NYU Depth v2: a ResNet-101 of output stride 8, by dilation, with a stem of three
# convolutions. The stem, the first stage and all batch normalization keep their ImageNet weights.
_base_ = 'depth_estimator.py'

model = dict(
    backbone=dict(
        type='ResNetV1c',
        depth=101,
        stem_channels=128,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=False,
        frozen_stages=1,
        norm_eval=True,
        norm_cfg=dict(type='BN', requires_grad=False),
        # No published weights of mmseg have this stem; configs/dorn/README.md says where there are
        # some. What does not fit would be left random, and frozen.
        init_cfg=dict(type='Pretrained', checkpoint='data/resnet101_stem128.pth'),
    ),
    decode_head=dict(
        type='DORNHead',
        in_channels=2048,
        in_index=3,
        # Of images of 257 x 353.
        feature_size=(33, 45),
        pool_size=8,
        num_bins=68,
        min_depth=0.698,
        max_depth=10.59,
        align_corners=True,
    ),
)
