_base_ = ['../_base_/segnet_vgg16_1xb8-200e_camvid-360x480.py', '../_base_/upsamplers/a2u.py']

model = dict(decode_head=dict(upsample_cfg=_base_.upsampler))
