"""Hosts for mmdetection."""

from ..frameworks import require

with require('mmdetection', __name__, '"mmcv>=2.0,<2.2" mmdet==3.3.0'):
    import mmdet.models  # noqa: F401

from .fpn import GuidedFPN, GuidedPAFPN
from .ms_deform_attn_pixel_decoder import GuidedMSDeformAttnPixelDecoder
from .pixel_decoder import GuidedPixelDecoder, GuidedTransformerEncoderPixelDecoder

__all__ = [
    'GuidedFPN',
    'GuidedMSDeformAttnPixelDecoder',
    'GuidedPAFPN',
    'GuidedPixelDecoder',
    'GuidedTransformerEncoderPixelDecoder',
]
