_base_ = [
    '../_base_/models/dorn_r101.py',
    '../_base_/datasets/nyu_dorn_257x353.py',
    '../_base_/schedules/dorn_3m.py',
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
