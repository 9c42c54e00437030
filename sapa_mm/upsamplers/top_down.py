"""The top-down path of a feature pyramid network with guided upsampling.

mmseg and mmdet each have an FPN of their own with the same structure; the hosts in
`sapa_mm.segmentation` and `sapa_mm.detection` put this in front of theirs.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .build import build_steps


class GuidedTopDown:
    """Mix-in for an FPN: upsamples with ``lateral[i-1] += up(lateral[i], guide=lateral[i-1])``.

    Every step has an upsampler of its own, in ``upsamplers`` under the name of its step,
    ``'c4_c3'`` and so on: the level that is upsampled and the level that guides, where c1 is the
    first of the backbone's features. All other keys of the state dict and all
    other arguments are the FPN's.

    Args:
        *args: The FPN's arguments.
        upsample_cfg: Config of the upsamplers, with a ``type``. Without a ``type`` it keeps the
            FPN's meaning, arguments of ``F.interpolate``. Default: ``dict(mode='nearest')``.
        step_cfgs: Name of a step, to the options that differ there. Default: none.
        **kwargs: The FPN's arguments.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict.
        ValueError: Unknown upsampler or step, or ``step_cfgs`` without an upsampler.
    """

    def __init__(
        self,
        *args: object,
        upsample_cfg: dict | None = None,
        step_cfgs: dict | None = None,
        **kwargs: object,
    ):
        upsample_cfg = {'mode': 'nearest'} if upsample_cfg is None else upsample_cfg
        if not isinstance(upsample_cfg, Mapping):
            raise TypeError(f'upsample_cfg: expected a dict, got {upsample_cfg!r}')
        super().__init__(*args, upsample_cfg=upsample_cfg, **kwargs)
        self.upsamplers = None
        if 'type' in upsample_cfg:
            channels = (self.out_channels, self.out_channels)
            top, bottom = self.backbone_end_level, self.start_level + 1
            steps = {f'c{i}_c{i - 1}': channels for i in range(top, bottom, -1)}
            self.upsamplers = build_steps(upsample_cfg, step_cfgs, steps)
        elif step_cfgs:
            raise ValueError(
                'step_cfgs: expected an upsample_cfg with a type beside it, got '
                f'upsample_cfg={dict(upsample_cfg)!r}'
            )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: The backbone's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            ``num_outs`` features (N, out_channels, H_i, W_i), fine to coarse.

        Raises:
            ValueError: Another number of features than ``in_channels`` has.
        """
        if self.upsamplers is None:
            return super().forward(inputs)
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'inputs: expected {len(self.in_channels)} features, got {len(inputs)}'
            )
        used = inputs[self.start_level : self.backbone_end_level]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used, strict=True)]
        for step, upsampler in enumerate(self.upsamplers.values(), 2):
            x, guide = laterals[-step + 1], laterals[-step]
            laterals[-step] = guide + upsampler(x, guide)
        convs = self.fpn_convs[: len(laterals)]
        outs = [conv(x) for conv, x in zip(convs, laterals, strict=True)]
        return (*outs, *self._extra_levels(inputs, laterals, outs))

    def _extra_levels(
        self, inputs: Sequence[Tensor], laterals: list[Tensor], outs: list[Tensor]
    ) -> list[Tensor]:
        """The levels above the backbone's, as the FPN's options say."""
        count = self.num_outs - len(outs)
        extra: list[Tensor] = []
        if not self.add_extra_convs:
            for _ in range(count):
                extra.append(F.max_pool2d((extra or outs)[-1], 1, stride=2))
            return extra
        sources = {
            'on_input': inputs[self.backbone_end_level - 1],
            'on_lateral': laterals[-1],
            'on_output': outs[-1],
        }
        x = sources[self.add_extra_convs]
        convs: nn.ModuleList = self.fpn_convs[len(outs) :]
        for i, conv in enumerate(convs):
            x = conv(F.relu(x) if i and self.relu_before_extra_convs else x)
            extra.append(x)
        return extra
