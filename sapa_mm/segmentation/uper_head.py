"""UPerNet's decode head with guided upsampling."""

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads import UPerHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor

from ..upsamplers import build_steps
from ..upsamplers.top_down import TopDownPath, level_steps


@MODELS.register_module()
class GuidedUPerHead(TopDownPath, UPerHead):
    """UPerNet's head whose top-down path upsamples with ``upsample_cfg``.

    The path is that of an FPN: ``lateral[i-1] += up(lateral[i], guide=lateral[i-1])``, from the
    pooling pyramid's output down, every step with an upsampler of its own. The pooling pyramid and
    the final fusion, which brings all levels to the size of the finest, interpolate bilinearly as
    ``UPerHead`` does. With ``type='bilinear'``, and ``align_corners`` in it if the head has it, the
    head returns what ``UPerHead`` returns. The upsamplers are in ``upsamplers``, under the name of
    their step; all other keys of the state dict are ``UPerHead``'s.

    Args:
        upsample_cfg: Config of the upsamplers, with a ``type``.
        step_cfgs: Name of a step to the options that differ there. The steps are ``'c4_c3'``,
            ``'c3_c2'`` and ``'c2_c1'``: the level that is upsampled and the level that guides.
            Default: none.
        **kwargs: ``UPerHead``'s arguments.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict.
        ValueError: Unknown upsampler or step.
    """

    replaces = 'UPerHead'

    def __init__(
        self, upsample_cfg: dict | None = None, step_cfgs: dict | None = None, **kwargs: object
    ):
        super().__init__(**kwargs)
        self.upsamplers = build_steps(upsample_cfg, step_cfgs, self.steps())

    def steps(self) -> dict[str, tuple[int, int]]:
        """Return the steps from the pooling pyramid's level to the finest."""
        return level_steps(len(self.in_channels), 1, self.channels)

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the features that are classified.

        Args:
            inputs: The backbone's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            (N, channels, H_1, W_1).
        """
        inputs = self._transform_inputs(inputs)
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs[:-1], strict=True)]
        laterals.append(self.psp_forward(inputs))
        *merged, top = self.merge_top_down(laterals, inputs)
        outs = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)] + [top]
        size = outs[0].shape[2:]
        outs[1:] = [
            resize(x, size, mode='bilinear', align_corners=self.align_corners) for x in outs[1:]
        ]
        return self.fpn_bottleneck(torch.cat(outs, dim=1))
