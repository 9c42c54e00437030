_base_ = ['../_base_/models/faster-rcnn_r50_fpn_coco.py', '../_base_/upsamplers/dysample_plus.py']

model = dict(neck=dict(upsample_cfg=_base_.upsampler))
