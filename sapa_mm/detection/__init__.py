"""Hosts for mmdetection."""

from ..frameworks import INSTALL, require

with require('mmdetection', __name__, f'{INSTALL["mmcv"]} {INSTALL["mmdet"]}'):
    import mmdet.models  # noqa: F401

from .csp_pafpn import GuidedCSPNeXtPAFPN, GuidedYOLOXPAFPN
from .fpn import GuidedFPN, GuidedPAFPN
from .fpn_carafe import GuidedFPN_CARAFE
from .ms_deform_attn_pixel_decoder import GuidedMSDeformAttnPixelDecoder
from .pixel_decoder import GuidedPixelDecoder, GuidedTransformerEncoderPixelDecoder

__all__ = [
    'GuidedCSPNeXtPAFPN',
    'GuidedFPN',
    'GuidedFPN_CARAFE',
    'GuidedMSDeformAttnPixelDecoder',
    'GuidedPAFPN',
    'GuidedPixelDecoder',
    'GuidedTransformerEncoderPixelDecoder',
    'GuidedYOLOXPAFPN',
]
