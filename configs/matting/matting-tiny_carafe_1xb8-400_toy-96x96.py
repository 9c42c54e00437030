_base_ = [
    '../_base_/models/matting_tiny.py',
    '../_base_/upsamplers/carafe.py',
    '../_base_/datasets/toy_matting_96x96.py',
    '../_base_/schedules/toy_matting_400.py',
]

model = dict(
    upsample_cfg=_base_.upsampler,
)
