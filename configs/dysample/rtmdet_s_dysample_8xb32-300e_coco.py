_base_ = ['../_base_/models/rtmdet_s_coco.py', '../_base_/upsamplers/dysample.py']

model = dict(neck=dict(upsample_cfg=_base_.upsampler))
