# mmseg's, with pictures of depth in one scale of colours.
_base_ = 'mmseg::_base_/default_runtime.py'

visualizer = dict(type='DepthVisualizer', max_depth=10.0)
