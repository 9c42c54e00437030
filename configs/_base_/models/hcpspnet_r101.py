_base_ = 'mmseg::_base_/models/pspnet_r50-d8.py'

custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(
    pretrained='open-mmlab://resnet101_v1c',
    # Output stride 32, as of the plain ResNet.
    backbone=dict(
        type='HCResNet', depth=101, levels=2, dilations=(1, 1, 1, 1), strides=(1, 2, 2, 2)
    ),
    decode_head=dict(type='HCHead', head_type='PSPHead'),
)
