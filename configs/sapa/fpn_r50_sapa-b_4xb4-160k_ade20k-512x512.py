_base_ = ['../_base_/models/fpn_r50_ade20k.py', '../_base_/upsamplers/sapa_b.py']

model = dict(neck=dict(upsample_cfg=_base_.upsampler))
