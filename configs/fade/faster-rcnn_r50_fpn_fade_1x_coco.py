_base_ = ['../_base_/models/faster-rcnn_r50_fpn_coco.py', '../_base_/upsamplers/fade.py']

model = dict(neck=dict(upsample_cfg=_base_.upsampler))
