"""Depth estimation with mmsegmentation: hosts, losses, data and metrics."""

from ..frameworks import INSTALL, require

with require('mmsegmentation', __name__, f'{INSTALL["mmcv"]} {INSTALL["mmseg"]}'):
    import mmseg.datasets  # noqa: F401

from .bts_head import GuidedBTSHead
from .dataset import DepthMapDataset
from .depth_head import DepthHead
from .dorn_head import DORNHead
from .edges import DepthBoundaryError, boundary_errors, depth_edges
from .metric import EigenDepthMetric, depth_errors
from .ordinal_loss import OrdinalRegressionLoss
from .planar_guidance import local_planar_guidance
from .sid import SpacingIncreasingDiscretization
from .silog_loss import ScaleInvariantLogLoss
from .stem_resnet import StemResNet
from .transforms import BTSColorAugmentation, CropRegion, LoadDepthMap
from .visualizer import DepthVisualizer

__all__ = [
    'BTSColorAugmentation',
    'CropRegion',
    'DORNHead',
    'DepthBoundaryError',
    'DepthHead',
    'DepthMapDataset',
    'DepthVisualizer',
    'EigenDepthMetric',
    'GuidedBTSHead',
    'LoadDepthMap',
    'OrdinalRegressionLoss',
    'ScaleInvariantLogLoss',
    'SpacingIncreasingDiscretization',
    'StemResNet',
    'boundary_errors',
    'depth_edges',
    'depth_errors',
    'local_planar_guidance',
]
