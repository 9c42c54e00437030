_base_ = 'mmseg::_base_/models/fpn_r50.py'

custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(type='HCResNet', depth=101, levels=2),
    neck=dict(type='HCFPN'),
)
