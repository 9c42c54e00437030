"""Upsampling by sampling the decoder feature at learned positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_bool, check_choice, check_positive_int
from ..ops.dispatch import autocast
from ..ops.layout import accumulation_dtype
from .base import Upsampler, fit_to_size
from .registration import MODELS

STYLES = ('lp', 'pl')


@MODELS.register_module()
class DySample(Upsampler):
    r"""Upsample a decoder feature by sampling it where its own content says.

    Every output pixel l' takes, in each of G groups of channels, the bilinear interpolation of x at
    a position of its own: the pixel's centre p, where bilinear interpolation reads, plus an offset
    in pixels of x (Learning to Upsample by Learning to Sample, Liu et al., ICCV 2023):

    .. math::
        o_{l'} = x(p_{l'} + O_{l'}), \qquad O = \tfrac{1}{4}\, \mathrm{linear}(x)
        \quad\text{or}\quad O = \tfrac{1}{2}\, \sigma(\mathrm{scope}(x))\, \mathrm{linear}(x)

    Both layers are 1x1 convolutions, ``scope`` has no bias. Style ``'lp'`` has the linear layer
    first and shuffles its result to the output's pixels; ``'pl'`` shuffles x first, so that the
    layer sees C / s^2 channels of every output pixel. A position outside of the image takes the
    value at its border, and with offsets of 0 the result is bilinear interpolation with
    ``align_corners=False``. The guide only says how large the result must be: an overshoot by less
    than s is cropped at the bottom and right, any other difference is interpolated bilinearly.
    DySample+ is the one with ``dynamic_scope``. Parameters are named and ordered as in the
    authors' module; the positions that it keeps in a buffer beside them are computed here.

    In half precision positions and interpolation are computed in float32, as a float16 coordinate
    of a large map is whole pixels off, and the result has the dtype of x. On CUDA the gradient of
    `torch.nn.functional.grid_sample` adds with atomics: it is not deterministic, and raises where
    ``torch.use_deterministic_algorithms(True)`` asks that it be.

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide. Default: ``in_channels``.
        scale_factor: Ratio s.
        style: ``'lp'`` or ``'pl'``, which needs a C that s^2 divides.
        groups: Groups G of channels with positions of their own; divides C.
        dynamic_scope: Whether x also says how far the offsets reach.
        init_cfg: As in every mmengine module. Default: linear normal with std 0.001 and bias 0,
            scope 0.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: One that is not positive, an unknown ``style``, ``groups`` that do not divide C,
            or with ``'pl'`` a ``scale_factor`` whose square does not.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        scale_factor: int = 2,
        style: str = 'lp',
        groups: int = 4,
        dynamic_scope: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(in_channels, guide_channels, init_cfg)
        check_positive_int('scale_factor', scale_factor)
        check_choice('style', style, STYLES)
        check_positive_int('groups', groups)
        check_bool('dynamic_scope', dynamic_scope)
        if in_channels % groups:
            raise ValueError(f'groups: expected a divisor of {in_channels}, got {groups}')
        if style == 'pl' and in_channels % scale_factor**2:
            raise ValueError(
                f"scale_factor: style 'pl' expected one whose square divides {in_channels}, got "
                f'{scale_factor}'
            )
        self.scale_factor = scale_factor
        self.style = style
        self.groups = groups
        self.dynamic_scope = dynamic_scope
        block = scale_factor**2
        if style == 'lp':
            channels = in_channels, 2 * groups * block
        else:
            channels = in_channels // block, 2 * groups
        self.offset = nn.Conv2d(*channels, 1)
        if dynamic_scope:
            self.scope = nn.Conv2d(*channels, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the convolutions; the result starts out almost bilinear."""
        for name, parameter in self.named_parameters():
            if name == 'offset.weight':
                nn.init.normal_(parameter, std=0.001)
            else:
                nn.init.zeros_(parameter)

    def predict_offsets(self, x: Tensor) -> Tensor:
        """Predict how far from its own place every output pixel samples.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, 2G, sH, sW) in pixels of x: along rows for each of the groups, to the right where
            positive, then along columns, downwards where positive.
        """
        if self.style == 'pl':
            x = F.pixel_shuffle(x, self.scale_factor)
        if self.dynamic_scope:
            offsets = 0.5 * self.scope(x).sigmoid() * self.offset(x)
        else:
            offsets = 0.25 * self.offset(x)
        return offsets if self.style == 'pl' else F.pixel_shuffle(offsets, self.scale_factor)

    def _sample(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Interpolate x (N, C, H, W) at every output pixel's place plus its offset."""
        batch, channels, height, width = x.shape
        dtype, size = accumulation_dtype(x.dtype), offsets.shape[2:]
        rows, columns = (
            (torch.arange(side, dtype=dtype, device=x.device) + 0.5) / self.scale_factor
            for side in size
        )
        across, down = offsets.to(dtype).unflatten(1, (2, self.groups)).unbind(1)
        # grid_sample counts from -1 to 1, from the edge of the first pixel to that of the last.
        positions = torch.stack(
            ((columns + across) * (2 / width) - 1, (rows[:, None] + down) * (2 / height) - 1), -1
        )
        maps = x.to(dtype).reshape(batch * self.groups, -1, height, width)
        out = F.grid_sample(
            maps, positions.flatten(0, 1), padding_mode='border', align_corners=False
        )
        return out.view(batch, channels, *size).to(x.dtype)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: Decoder feature (N, C, H, W).
            guide: Encoder feature (N, Cy, Hg, Wg), at least as large; only its size counts.

        Returns:
            (N, C, Hg, Wg), under autocast in its dtype.

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        (x,) = autocast(x)
        out = self._sample(x, self.predict_offsets(x))
        return fit_to_size(out, x, tuple(guide.shape[2:]), self.scale_factor)

    def flops(self, size: tuple[int, int], guide_size: tuple[int, int]) -> int:
        """Count the multiply-adds of one image.

        Per pixel of x: 2 G C s^2 for the offsets (2 G C with ``'pl'``), as much again and 2 G s^2
        with the dynamic scope, and 4 s^2 C for the interpolation.

        Args:
            size: (H, W) of x.
            guide_size: (Hg, Wg) of the guide, which does not matter here.

        Returns:
            Multiply-adds, each counted once.
        """
        block = self.scale_factor**2
        linear = self.offset.weight.numel() * (block if self.style == 'pl' else 1)
        if self.dynamic_scope:
            linear += linear + 2 * self.groups * block
        return size[0] * size[1] * (linear + 4 * block * self.in_channels)

    def extra_repr(self) -> str:
        """Show the options that no sub-module shows."""
        return (
            f'{super().extra_repr()}, scale_factor={self.scale_factor}, style={self.style!r}, '
            f'groups={self.groups}, dynamic_scope={self.dynamic_scope}'
        )
