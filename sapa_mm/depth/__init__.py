"""Depth estimation with mmsegmentation: hosts, losses, data and metrics."""

from ..frameworks import INSTALL, require

with require('mmsegmentation', __name__, f'{INSTALL["mmcv"]} {INSTALL["mmseg"]}'):
    import mmseg.models  # noqa: F401

from .depth_head import DepthHead
from .visualizer import DepthVisualizer

__all__ = [
    'DepthHead',
    'DepthVisualizer',
]
