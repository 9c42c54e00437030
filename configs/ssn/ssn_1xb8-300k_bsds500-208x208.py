_base_ = [
    '../_base_/models/ssn.py',
    '../_base_/datasets/bsds500_208x208.py',
    '../_base_/schedules/ssn_300k.py',
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
