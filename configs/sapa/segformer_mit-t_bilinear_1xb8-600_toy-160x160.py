# The baseline of segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py.
_base_ = '../_base_/segformer_mit-t_1xb8-600_toy-160x160.py'
