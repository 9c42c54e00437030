"""FPN of mmsegmentation with guided upsampling."""

from mmseg.models.necks import FPN
from mmseg.registry import MODELS

from ..upsamplers.top_down import GuidedTopDown


@MODELS.register_module()
class GuidedFPN(GuidedTopDown, FPN):
    """mmsegmentation's ``FPN`` whose top-down path upsamples with ``upsample_cfg``.

    It takes the arguments of ``FPN``, and those of `GuidedNeck`.
    """

    replaces = 'FPN'
