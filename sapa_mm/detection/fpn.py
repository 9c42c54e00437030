"""FPN and PAFPN of mmdetection with guided upsampling."""

from mmdet.models.necks import FPN, PAFPN
from mmdet.registry import MODELS
from torch import Tensor

from ..upsamplers.build import check_upsample_cfg
from ..upsamplers.top_down import GuidedTopDown
from .fpn_carafe import LoadsFPNCarafe


@MODELS.register_module()
class GuidedFPN(LoadsFPNCarafe, GuidedTopDown, FPN):
    """mmdetection's ``FPN`` whose top-down path upsamples with ``upsample_cfg``.

    It takes the arguments of ``FPN``, and those of `GuidedNeck`. With ``type='CARAFE'`` it loads
    the weights of an ``FPN_CARAFE`` as well, and computes what that does if that has no levels
    above the backbone's; otherwise `GuidedFPN_CARAFE` does.
    """

    replaces = 'FPN'


@MODELS.register_module()
class GuidedPAFPN(GuidedTopDown, PAFPN):
    """mmdetection's ``PAFPN`` whose top-down path upsamples with ``upsample_cfg``.

    It takes the arguments of ``PAFPN``, and those of `GuidedNeck`; without ``upsample_cfg`` it
    is ``PAFPN``. The bottom-up path is ``PAFPN``'s.
    """

    replaces = 'PAFPN'

    def __init__(self, *args: object, upsample_cfg: dict | None = None, **kwargs: object):
        if upsample_cfg is not None:  # PAFPN has no such argument, so it must name an upsampler
            check_upsample_cfg('upsample_cfg', upsample_cfg)
        super().__init__(*args, upsample_cfg=upsample_cfg, **kwargs)

    def _outputs(self, laterals: list[Tensor]) -> list[Tensor]:
        x, *others = super()._outputs(laterals)
        outs = [x]
        for down, conv, other in zip(self.downsample_convs, self.pafpn_convs, others, strict=True):
            x = other + down(x)
            outs.append(conv(x))
        return outs
