# The parameters that the SAPA paper counts are those of one projection for x, the key's.
_base_ = [
    '../_base_/models/matting_net.py',
    '../_base_/upsamplers/sapa_g.py',
    '../_base_/datasets/composition1k_512x512.py',
    '../_base_/schedules/matting_180k.py',
]

model = dict(
    downsample_cfg=dict(type='max_pool'),
    upsample_cfg=dict(_base_.upsampler, self_projection='key'),
)
