_base_ = [
    '../_base_/models/matting_net.py',
    '../_base_/datasets/composition1k_512x512.py',
    '../_base_/schedules/matting_180k.py',
]

model = dict(
    downsample_cfg=dict(type='conv'),
    upsample_cfg=dict(type='A2U', mode='dynamic', normalization='softmax'),
)
