_base_ = 'ssn-tiny_1xb4-200_toy-96x96.py'

model = dict(clustering_cfg=dict())
