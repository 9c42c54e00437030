# HCSSN: features come back to the image's size by soft clustering.
_base_ = 'ssn_1xb8-300k_bsds500-208x208.py'

model = dict(clustering_cfg=dict())
