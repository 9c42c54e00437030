_base_ = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'

custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(neck=dict(type='GuidedFPN'))
