# BTS of the SAPA paper's Table 4: ResNet-50, whose first convolution and the affine terms of the
# main path's norms stay as they are, and a decoder of bts_size 512.
_base_ = 'depth_estimator.py'

model = dict(
    backbone=dict(
        type='StemResNet',
        depth=50,
        freeze_first_conv=True,
        freeze_norm_affine=True,
        style='pytorch',
        norm_cfg=dict(type='BN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    decode_head=dict(
        type='GuidedBTSHead',
        in_channels=(64, 256, 512, 1024, 2048),
        bts_size=512,
        max_depth=10.0,
        loss_decode=dict(type='ScaleInvariantLogLoss'),
    ),
)
