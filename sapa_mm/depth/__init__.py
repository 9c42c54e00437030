"""Depth estimation with mmsegmentation: hosts, losses, data and metrics."""

from ..frameworks import INSTALL, require

with require('mmsegmentation', __name__, f'{INSTALL["mmcv"]} {INSTALL["mmseg"]}'):
    import mmseg.models  # noqa: F401

from .bts_head import GuidedBTSHead
from .depth_head import DepthHead
from .planar_guidance import local_planar_guidance
from .silog_loss import ScaleInvariantLogLoss
from .stem_resnet import StemResNet

__all__ = [
    'DepthHead',
    'GuidedBTSHead',
    'ScaleInvariantLogLoss',
    'StemResNet',
    'local_planar_guidance',
]
