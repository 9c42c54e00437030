_base_ = [
    '../_base_/models/bts_r50.py',
    '../_base_/datasets/nyu_bts_416x544.py',
    '../_base_/schedules/bts_50e.py',
    '../_base_/upsamplers/sapa_g.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(upsample_cfg=_base_.upsampler),
)
