_base_ = [
    '../_base_/models/bts_r50.py',
    '../_base_/datasets/nyu_bts_416x544.py',
    '../_base_/schedules/bts_50e.py',
    '../_base_/upsamplers/a2u.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    # With the encoder's norm A2U adds the 0.08 M parameters of the paper's Table 4.
    decode_head=dict(upsample_cfg=dict(**_base_.upsampler, encoder_norm=True)),
)
