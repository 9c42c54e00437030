_base_ = [
    '../_base_/models/hcfpn_r101.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/hc_125k.py',
]

train_dataloader = dict(batch_size=2)
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=150),
)
