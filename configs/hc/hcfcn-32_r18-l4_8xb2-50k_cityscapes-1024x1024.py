_base_ = './hcfcn-32_r18-l2_8xb2-50k_cityscapes-1024x1024.py'

model = dict(backbone=dict(levels=4))
