_base_ = ['../_base_/segnet-tiny_1xb4-300_camvid-180x240.py', '../_base_/upsamplers/nearest.py']

model = dict(decode_head=dict(upsample_cfg=_base_.upsampler))
