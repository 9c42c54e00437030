"""The necks of YOLOX and RTMDet with guided upsampling."""

from collections.abc import Sequence

import torch
from mmdet.models.necks import YOLOXPAFPN, CSPNeXtPAFPN
from mmdet.registry import MODELS
from torch import Tensor

from ..upsamplers.top_down import GuidedNeck


class GuidedCSPPAFPN(GuidedNeck):
    """Mix-in for a PAFPN of CSP blocks: ``x = block(cat(up(reduced, guide), guide))`` a step.

    The guide is the backbone's feature of the level below, and reduced the output of the step
    before, brought to the guide's width by a 1x1 convolution. The guide gives the size, so that the
    features need not halve exactly, as long as each has half the rows and columns of the one below,
    rounded up. Three levels make two steps, ``'c3_c2'`` and ``'c2_c1'``; arguments and keys of the
    state dict are those of `GuidedNeck`.
    """

    def steps(self) -> dict[str, tuple[int, int]]:
        """Return the steps from the coarsest level to the finest, each of its guide's width."""
        widths = self.in_channels
        return {f'c{i + 1}_c{i}': (widths[i - 1],) * 2 for i in range(len(widths) - 1, 0, -1)}

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: The backbone's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            As many features (N, out_channels, H_i, W_i), fine to coarse.

        Raises:
            ValueError: Another number of features than ``in_channels`` has.
        """
        if self.upsamplers is None:
            return super().forward(inputs)
        self.check_count(inputs)
        x = inputs[-1]
        above = []
        for upsampler, guide, reduce, block in zip(
            self.upsamplers.values(),
            inputs[-2::-1],
            self.reduce_layers,
            self.top_down_blocks,
            strict=True,
        ):
            reduced = reduce(x)
            above.append(reduced)
            x = block(torch.cat([upsampler(reduced, guide), guide], 1))
        outs = [x]
        for down, block, other in zip(
            self.downsamples, self.bottom_up_blocks, reversed(above), strict=True
        ):
            outs.append(block(torch.cat([down(outs[-1]), other], 1)))
        return tuple(conv(out) for conv, out in zip(self.out_convs, outs, strict=True))


@MODELS.register_module()
class GuidedYOLOXPAFPN(GuidedCSPPAFPN, YOLOXPAFPN):
    """mmdetection's ``YOLOXPAFPN`` whose top-down path upsamples with ``upsample_cfg``.

    It takes the arguments of ``YOLOXPAFPN``, and those of `GuidedNeck`.
    """

    replaces = 'YOLOXPAFPN'


@MODELS.register_module()
class GuidedCSPNeXtPAFPN(GuidedCSPPAFPN, CSPNeXtPAFPN):
    """mmdetection's ``CSPNeXtPAFPN`` whose top-down path upsamples with ``upsample_cfg``.

    It takes the arguments of ``CSPNeXtPAFPN``, and those of `GuidedNeck`.
    """

    replaces = 'CSPNeXtPAFPN'
