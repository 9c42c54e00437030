"""Hosts and metrics for mmsegmentation."""

from ..frameworks import require

with require('mmsegmentation', __name__, '"mmcv>=2.0,<2.2" mmsegmentation==1.2.2 ftfy regex'):
    import mmseg.models  # noqa: F401

from .boundary_iou import BoundaryIoU
from .fpn import GuidedFPN
from .fpn_head import GuidedFPNHead
from .segformer_head import GuidedSegformerHead
from .uper_head import GuidedUPerHead

__all__ = [
    'BoundaryIoU',
    'GuidedFPN',
    'GuidedFPNHead',
    'GuidedSegformerHead',
    'GuidedUPerHead',
]
