# The schedule of half an hour.
_base_ = [
    '../_base_/models/ssn.py',
    '../_base_/datasets/bsds500_208x208.py',
    '../_base_/schedules/ssn_short.py',
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
