"""FPN of mmdetection with guided upsampling."""

from mmdet.models.necks import FPN
from mmdet.registry import MODELS

from ..upsamplers.top_down import GuidedTopDown


@MODELS.register_module()
class GuidedFPN(GuidedTopDown, FPN):
    """mmdetection's ``FPN`` whose top-down path upsamples with ``upsample_cfg``.

    Takes the arguments of ``FPN``, and those of `GuidedTopDown`.
    """
