_base_ = '../_base_/segformer_mit-t_1xb8-600_toy-160x160.py'

model = dict(
    decode_head=dict(
        type='GuidedSegformerHead',
        upsample_cfg=dict(type='SAPA', similarity='gated'),
    )
)
