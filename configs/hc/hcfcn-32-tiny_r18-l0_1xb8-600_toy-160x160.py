# The same without clustering, whose logits are upsampled bilinearly, to compare with.
_base_ = './hcfcn-32-tiny_r18-l3_1xb8-600_toy-160x160.py'

model = dict(type='EncoderDecoder', backbone=dict(levels=0))
val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='BoundaryIoU')]
test_evaluator = val_evaluator
custom_hooks = []
