_base_ = ['../_base_/models/segformer_mit-b1_ade20k.py', '../_base_/upsamplers/fade.py']

model = dict(decode_head=dict(upsample_cfg=_base_.upsampler))
