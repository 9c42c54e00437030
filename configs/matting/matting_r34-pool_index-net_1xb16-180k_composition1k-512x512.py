# The hidden width is the one that gives the 12.26 M parameters of both papers.
_base_ = [
    '../_base_/models/matting_net.py',
    '../_base_/datasets/composition1k_512x512.py',
    '../_base_/schedules/matting_180k.py',
]

model = dict(
    downsample_cfg=dict(type='max_pool'),
    upsample_cfg=dict(type='IndexNet', variant='m2o', hidden_ratio=2),
)
