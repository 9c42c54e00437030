_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'

custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(neck=dict(type='GuidedCSPNeXtPAFPN'))
