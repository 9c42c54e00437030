_base_ = [
    '../_base_/segformer_efficientnet-lite0_1xb8-800_camvid-360x480.py',
    '../_base_/upsamplers/nearest.py',
]

model = dict(decode_head=dict(type='GuidedSegformerHead', upsample_cfg=_base_.upsampler))
