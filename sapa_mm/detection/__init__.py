"""Hosts for mmdetection."""

from ..frameworks import INSTALL, require

with require('mmdetection', __name__, f'{INSTALL["mmcv"]} {INSTALL["mmdet"]}'):
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
