# The optimizer leaves weight decay off normalization layers, the upsamplers' included.
_base_ = 'mmseg::mask2former/mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py'

custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(decode_head=dict(pixel_decoder=dict(type='mmdet.GuidedMSDeformAttnPixelDecoder')))
