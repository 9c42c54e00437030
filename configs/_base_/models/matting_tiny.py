# A network of a quarter of the width and a third of the blocks, from scratch.
_base_ = 'matting_net.py'
model = dict(backbone=dict(channels=(16, 32, 64), blocks=(1, 1, 1), init_cfg=None))
