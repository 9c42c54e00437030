"""SegFormer's decode head with guided upsampling."""

from collections.abc import Iterator, Sequence

import torch
from mmseg.models.decode_heads import SegformerHead
from mmseg.registry import MODELS
from torch import Tensor

from ..upsamplers import GuidedHost, build_steps


@MODELS.register_module()
class GuidedSegformerHead(GuidedHost, SegformerHead):
    """SegFormer's all-MLP head that upsamples step by step, each step guided by the next level.

    With the projected features c1 (finest) to c4, all of width ``channels``: c4 goes up along c3,
    c2 and c1, c3 along c2 and c1, and c2 along c1, six steps with an upsampler each (SAPA, Lu et
    al., NeurIPS 2022). Then they are concatenated, fused and classified as in ``SegformerHead``, at
    the size of c1. The upsamplers are in ``upsamplers``, under the name of their step; all other
    keys of the state dict are ``SegformerHead``'s.

    Args:
        upsample_cfg: Config of the upsamplers, with a ``type``.
        step_cfgs: Name of a step to the options that differ there. The steps are ``'c4_c3'``,
            ``'c4_c2'``, ``'c4_c1'``, ``'c3_c2'``, ``'c3_c1'`` and ``'c2_c1'``: the level that is
            upsampled and the level that guides. Default: none.
        **kwargs: ``SegformerHead``'s arguments, without ``interpolate_mode``.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict.
        ValueError: Unknown upsampler or step, or ``interpolate_mode`` given.
    """

    replaces = 'SegformerHead'
    refuses = ('interpolate_mode',)

    def __init__(
        self, upsample_cfg: dict | None = None, step_cfgs: dict | None = None, **kwargs: object
    ):
        super().__init__(**kwargs)
        channels = (self.channels, self.channels)
        steps = {name: channels for name, _, _ in self._steps()}
        self.upsamplers = build_steps(upsample_cfg, step_cfgs, steps)

    def _steps(self) -> Iterator[tuple[str, int, int]]:
        """Yield name, index of the upsampled and of the guiding level of every step, in order."""
        for source in range(len(self.convs) - 1, 0, -1):
            for guide in range(source - 1, -1, -1):
                yield f'c{source + 1}_c{guide + 1}', source, guide

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the logits.

        Args:
            inputs: The backbone's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            (N, num_classes, H_1, W_1).
        """
        inputs = self._transform_inputs(inputs)
        guides = [conv(x) for conv, x in zip(self.convs, inputs, strict=True)]
        outs = list(guides)
        for name, source, guide in self._steps():
            outs[source] = self.upsamplers[name](outs[source], guides[guide])
        return self.cls_seg(self.fusion_conv(torch.cat(outs, dim=1)))
