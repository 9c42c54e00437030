_base_ = ['../_base_/bts-tiny_r18_1xb8-500_toy-160x160.py', '../_base_/upsamplers/nearest.py']

model = dict(decode_head=dict(upsample_cfg=_base_.upsampler))
