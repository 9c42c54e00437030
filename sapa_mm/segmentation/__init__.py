"""Hosts and metrics for mmsegmentation."""

import contextlib
import io

from ..frameworks import INSTALL, require

# The fork's package prints that it lacks an optional one.
with (
    require('mmsegmentation', __name__, f'{INSTALL["mmcv"]} {INSTALL["mmseg"]}'),
    contextlib.redirect_stdout(io.StringIO()),
):
    # In this order the fork's does without mmcv's operators.
    import mmseg.models  # noqa: I001
    import mmseg.datasets  # noqa: F401

from .balanced_loss import BalancedCrossEntropyLoss
from .boundary_iou import BoundaryIoU
from .bsds import BSDS500Dataset, ConvertToLab, LoadBSDSAnnotations
from .camvid import CamVidDataset
from .clustered_features import ClusterDecoding, ClusteredFeatures
from .connectivity import connect_superpixels
from .efficientnet_lite import EfficientNetLite0
from .fpn import GuidedFPN
from .fpn_head import GuidedFPNHead
from .hc_fpn import HCFPN
from .hc_heads import (
    HCASPPHead,
    HCDepthwiseSeparableASPPHead,
    HCFCNHead,
    HCHead,
    HCPSPHead,
    HCUPerHead,
)
from .hc_resnet import HCResNet
from .segformer_head import GuidedSegformerHead
from .segnet import SegNetBasic, SegNetVGG
from .segnet_head import SegNetHead
from .ssn import SSN, superpixel_grid
from .ssn_features import SSNFeatures
from .sun_rgbd import SUNRGBDDataset
from .superpixel_hook import SuperpixelVisualizationHook
from .superpixels import (
    SuperpixelEncoderDecoder,
    SuperpixelMetric,
    achievable_segmentation_accuracy,
    boundary_recall,
    image_superpixels,
)
from .uper_head import GuidedUPerHead

__all__ = [
    'HCFPN',
    'SSN',
    'BSDS500Dataset',
    'BalancedCrossEntropyLoss',
    'BoundaryIoU',
    'CamVidDataset',
    'ClusterDecoding',
    'ClusteredFeatures',
    'ConvertToLab',
    'EfficientNetLite0',
    'GuidedFPN',
    'GuidedFPNHead',
    'GuidedSegformerHead',
    'GuidedUPerHead',
    'HCASPPHead',
    'HCDepthwiseSeparableASPPHead',
    'HCFCNHead',
    'HCHead',
    'HCPSPHead',
    'HCResNet',
    'HCUPerHead',
    'LoadBSDSAnnotations',
    'SSNFeatures',
    'SUNRGBDDataset',
    'SegNetBasic',
    'SegNetHead',
    'SegNetVGG',
    'SuperpixelEncoderDecoder',
    'SuperpixelMetric',
    'SuperpixelVisualizationHook',
    'achievable_segmentation_accuracy',
    'boundary_recall',
    'connect_superpixels',
    'image_superpixels',
    'superpixel_grid',
]
