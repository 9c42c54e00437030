"""The top-down path of a feature pyramid network with guided upsampling.

mmseg and mmdet each have an FPN of their own with the same structure; the hosts in
`sapa_mm.segmentation` and `sapa_mm.detection` put this in front of theirs.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .build import build_steps
from .hosts import GuidedHost


def level_steps(coarsest: int, finest: int, channels: int) -> dict[str, tuple[int, int]]:
    """Name the steps of a top-down path, as `build_steps` takes them.

    Args:
        coarsest: Number of the level that the path starts from, 1 for c1.
        finest: Number of the level that it ends at.
        channels: Width of all levels.

    Returns:
        ``{'c4_c3': (channels, channels), ...}``, in the path's order; empty for a single level.
    """
    return {f'c{i}_c{i - 1}': (channels, channels) for i in range(coarsest, finest, -1)}


class TopDownPath(GuidedHost):
    """Mix-in for a host of a top-down path: ``lateral[i-1] += up(lateral[i], guide=lateral[i-1])``.

    The host says by `steps` which steps there are, and has their upsamplers in ``upsamplers``.
    """

    upsamplers: nn.ModuleDict

    def steps(self) -> dict[str, tuple[int, int]]:
        """Return the steps of the path, as `level_steps` gives them."""
        raise NotImplementedError

    def merge_top_down(self, laterals: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Add to every level what comes from above, step by step.

        Args:
            laterals: Features (N, C, H_i, W_i), fine to coarse, one more than there are steps.
            inputs: What the host's ``forward`` got.

        Returns:
            Features of the laterals' shapes, fine to coarse.
        """
        merged = [laterals[-1]]
        for name, guide in zip(self.steps(), laterals[-2::-1], strict=True):
            merged.append(guide + self.upsample(name, merged[-1], guide, inputs))
        return merged[::-1]

    def upsample(self, name: str, x: Tensor, guide: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Take one step; a host that upsamples in another way overrides this.

        Args:
            name: Name of the step.
            x: (N, C, H, W), what the step before gave.
            guide: (N, C, Hg, Wg), the lateral of the level that the step reaches.
            inputs: What the host's ``forward`` got.

        Returns:
            (N, C, Hg, Wg).
        """
        return self.upsamplers[name](x, guide)


class GuidedNeck(GuidedHost):
    """Mix-in for a neck that upsamples with guidance if ``upsample_cfg`` names an upsampler.

    Every step has an upsampler of its own, in ``upsamplers`` under the name of its step,
    ``'c4_c3'`` and so on: the level that is upsampled and the level that guides, where c1 is the
    first of the backbone's features. All other keys of the state dict and all other arguments are
    the neck's. The host says by `steps` which steps there are, and takes them in its ``forward``.

    Args:
        *args: The neck's arguments.
        upsample_cfg: Config of the upsamplers, with a ``type``. Without a ``type`` it keeps the
            neck's meaning, arguments of the interpolation. Default: the neck's own, nearest.
        step_cfgs: Name of a step, to the options that differ there. Default: none.
        **kwargs: The neck's arguments.

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
        if not isinstance(upsample_cfg, Mapping | None):
            raise TypeError(f'upsample_cfg: expected a dict, got {upsample_cfg!r}')
        guided = upsample_cfg is not None and 'type' in upsample_cfg
        if upsample_cfg is not None and not guided:
            kwargs['upsample_cfg'] = upsample_cfg
        super().__init__(*args, **kwargs)
        self.upsamplers = None
        if guided:
            self.upsamplers = build_steps(upsample_cfg, step_cfgs, self.steps())
        elif step_cfgs:
            raise ValueError(
                'step_cfgs: expected an upsample_cfg with a type beside it, got '
                f'upsample_cfg={upsample_cfg!r}'
            )

    def steps(self) -> dict[str, tuple[int, int]]:
        """Return the steps as `build_steps` takes them, in the order in which they are taken."""
        raise NotImplementedError

    def check_count(self, inputs: Sequence[Tensor]) -> None:
        """Raise ValueError unless there are as many features as ``in_channels`` has."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'inputs: expected {len(self.in_channels)} features, got {len(inputs)}'
            )


class GuidedTopDown(GuidedNeck, TopDownPath):
    """Mix-in for an FPN, whose top-down path it upsamples with guidance; see `GuidedNeck`."""

    def steps(self) -> dict[str, tuple[int, int]]:
        """Return the steps from the coarsest of the levels in use to the finest."""
        return level_steps(self.backbone_end_level, self.start_level + 1, self.out_channels)

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
        self.check_count(inputs)
        used = inputs[self.start_level : self.backbone_end_level]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used, strict=True)]
        laterals = self.merge_top_down(laterals, inputs)
        outs = self._outputs(laterals)
        return (*outs, *self._extra_levels(inputs, laterals, outs))

    def _outputs(self, laterals: list[Tensor]) -> list[Tensor]:
        """Compute the levels of the backbone from the merged laterals."""
        convs = self.fpn_convs[: len(laterals)]
        return [conv(x) for conv, x in zip(convs, laterals, strict=True)]

    def _extra_levels(
        self, inputs: Sequence[Tensor], laterals: list[Tensor], outs: list[Tensor]
    ) -> list[Tensor]:
        """Compute the levels above the backbone's, as the FPN's options say."""
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
