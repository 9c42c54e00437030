_base_ = [
    '../_base_/models/hcdeeplabv3_r101.py',
    'mmseg::_base_/datasets/cityscapes_1024x1024.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/hc_50k.py',
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
