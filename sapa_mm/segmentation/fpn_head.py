"""Decode head of semantic FPN with guided upsampling."""

from collections.abc import Sequence

from mmseg.models.decode_heads import FPNHead
from mmseg.models.utils import Upsample
from mmseg.registry import MODELS
from torch import Tensor

from ..upsamplers import GuidedHost, build_steps


@MODELS.register_module()
class GuidedFPNHead(GuidedHost, FPNHead):
    """Semantic FPN's head whose every upsampling is guided by the level it reaches.

    As in ``FPNHead``, each level of the FPN goes through convolutions with a step x2 after each, up
    to the stride of the finest level, and the results are summed and classified. The guide of a
    step is the level of that stride as the FPN hands it in, so a step has ``channels`` of the head
    for x and ``in_channels`` of that level for the guide. Every step has an upsampler of its own,
    in ``upsamplers`` under the name of its step; all other keys of the state dict are
    ``FPNHead``'s. With ``type='bilinear'``, and ``align_corners`` in it if the head has it, the
    head returns what ``FPNHead`` returns where sizes halve exactly (at odd sizes ``FPNHead``
    overshoots and interpolates once more; here every step ends at its level's size).

    Args:
        feature_strides: Stride of every level, powers of 2, the first the smallest. Each stride
            that a step reaches must be there.
        upsample_cfg: Config of the upsamplers, with a ``type``.
        step_cfgs: Name of a step to the options that differ there. With strides 4, 8, 16, 32 the
            steps are ``'c2_c1'``, ``'c3_c2'``, ``'c3_c1'``, ``'c4_c3'``, ``'c4_c2'`` and
            ``'c4_c1'``: the level that is upsampled and the level that guides. Default: none.
        **kwargs: ``FPNHead``'s other arguments.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict.
        ValueError: Unknown upsampler or step, or no level of the stride that a step reaches.
    """

    replaces = 'FPNHead'

    def __init__(
        self,
        feature_strides: Sequence[int],
        upsample_cfg: dict | None = None,
        step_cfgs: dict | None = None,
        **kwargs: object,
    ):
        super().__init__(feature_strides, **kwargs)
        steps = {
            f'c{level + 1}_c{guide + 1}': (self.channels, self.in_channels[guide])
            for level in range(len(feature_strides))
            for guide in self._guides(level)
        }
        self.upsamplers = build_steps(upsample_cfg, step_cfgs, steps)

    def _guides(self, level: int) -> list[int]:
        """Return the levels that guide the steps of ``level``, in order."""
        strides = list(self.feature_strides)
        count = sum(isinstance(layer, Upsample) for layer in self.scale_heads[level])
        reached = [strides[level] // 2**step for step in range(1, count + 1)]
        missing = [stride for stride in reached if stride not in strides]
        if missing:
            raise ValueError(
                f'feature_strides: expected a level of stride {missing[0]} to guide the steps of '
                f'that of stride {strides[level]}, got {strides}'
            )
        return [strides.index(stride) for stride in reached]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the logits.

        Args:
            inputs: The FPN's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            (N, num_classes, H_1, W_1).
        """
        inputs = self._transform_inputs(inputs)
        outs = []
        for level, (x, layers) in enumerate(zip(inputs, self.scale_heads, strict=True)):
            guides = iter(self._guides(level))
            for layer in layers:
                if isinstance(layer, Upsample):
                    guide = next(guides)
                    x = self.upsamplers[f'c{level + 1}_c{guide + 1}'](x, inputs[guide])
                else:
                    x = layer(x)
            outs.append(x)
        return self.cls_seg(sum(outs[1:], start=outs[0]))
