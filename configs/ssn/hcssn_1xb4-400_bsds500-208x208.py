_base_ = 'ssn_1xb4-400_bsds500-208x208.py'

model = dict(clustering_cfg=dict())
