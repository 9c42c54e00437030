# BTS of the SAPA paper's Table 4: ResNet-50, whose first convolution and the affine terms of the
# main path's norms stay as they are, and a decoder of bts_size 512.
custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(
    type='DepthEstimator',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        # A depth of 0 is unknown; the default of 255 would be 255 metres.
        seg_pad_val=0,
    ),
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
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
