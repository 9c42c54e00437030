# The encoder starts from ResNet-34 of ImageNet; the trimap's channel of the stem starts at 0.
custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(
    type='GuidedMattingNet',
    backbone=dict(
        type='MattingResNet',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet34'),
    ),
    data_preprocessor=dict(
        type='MattingPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)
