_base_ = ['../_base_/models/yolox_s_coco.py', '../_base_/upsamplers/dysample.py']

# It replaces the arguments of an interpolation.
model = dict(neck=dict(upsample_cfg=dict(_delete_=True, **_base_.upsampler)))
