_base_ = ['../_base_/models/mask2former_swin-b_ade20k.py', '../_base_/upsamplers/sapa_b.py']

model = dict(decode_head=dict(pixel_decoder=dict(upsample_cfg=_base_.upsampler)))
