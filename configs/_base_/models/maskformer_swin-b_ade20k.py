_base_ = '../../baseline/maskformer_swin-b_nearest_8xb2-160k_ade20k-640x640.py'

model = dict(decode_head=dict(pixel_decoder=dict(type='mmdet.GuidedPixelDecoder')))
