_base_ = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'

custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(neck=dict(type='GuidedYOLOXPAFPN'))
