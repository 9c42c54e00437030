# The optimizer's key 'head' is found before 'norm': upsamplers get ten times the learning rate and
# full weight decay, as all of the head does.
_base_ = 'mmseg::segformer/segformer_mit-b1_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(decode_head=dict(type='GuidedSegformerHead'))
