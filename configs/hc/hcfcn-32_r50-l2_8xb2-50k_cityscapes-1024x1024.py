_base_ = './hcfcn-32_r101_8xb2-50k_cityscapes-1024x1024.py'

model = dict(pretrained='open-mmlab://resnet50_v1c', backbone=dict(depth=50))
