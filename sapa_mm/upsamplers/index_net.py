"""IndexNet: upsampling by learned indices."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import assemble
from ..ops.checks import check_bool, check_choice, check_positive_int
from ..ops.dispatch import autocast_is_on
from ..ops.parents import upsample_parent
from .base import PairedUpsampler, block_grid, block_pixels, pad_to_even
from .registration import MODELS

VARIANTS = ('hin', 'm2o', 'o2o')


@MODELS.register_module()
class IndexNet(PairedUpsampler):
    r"""Upsample a decoder feature by indices that are learned from the encoder feature.

    Every 2 x 2 block of the guide y is encoded to four logits z, one for each of its pixels, by a
    convolution of stride 2. They gate the value that nearest-neighbour interpolation gives each
    pixel, and, normalized over the block, they pool the guide (Indices Matter: Learning to Index
    for Deep Image Matting, Lu et al., ICCV 2019):

    .. math::
        o_{l'} = \sigma(z_{l'})\, x_l, \qquad
        \mathrm{down}(y)_l = \sum_{l' \in l} \mathrm{softmax}_{l' \in l}(\sigma(z_{l'}))\, y_{l'}

    ========  ============================================  =============================
    variant   indices                                       encoding of the guide
    ========  ============================================  =============================
    ``hin``   holistic: one for all channels                one, of 2 Cy hidden channels
    ``m2o``   one a channel, from all channels of y         one for each pixel of a block
    ``o2o``   one a channel, from that channel of y alone   as ``m2o``, depthwise
    ========  ============================================  =============================

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide. Default: ``in_channels``.
        variant: ``'hin'``, ``'m2o'`` or ``'o2o'`` (which needs Cy = C).
        context: Whether the convolution of stride 2 is 4 x 4 (sees one pixel around the block) or
            2 x 2.
        nonlinear: Whether batch normalization, ReLU6 and a 1x1 convolution follow it.
        hidden_ratio: Hidden channels of an encoding, over the guide's with ``'hin'`` and over those
            of the index maps otherwise. Default: 2 with ``'hin'`` and 1 otherwise.
        init_cfg: As in every mmengine module. Default: Kaiming normal.

    Raises:
        TypeError: Numbers that are no ints, or switches that are no bools.
        ValueError: An unknown variant, a ratio that is not positive or has no hidden channels to
            count, or channels that must be equal and are not.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        variant: str = 'hin',
        context: bool = True,
        nonlinear: bool = True,
        hidden_ratio: int | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(in_channels, guide_channels, init_cfg)
        check_choice('variant', variant, VARIANTS)
        check_bool('context', context)
        check_bool('nonlinear', nonlinear)
        if variant == 'o2o':
            self.check_equal_channels("variant 'o2o'")
        self.variant = variant
        self.index_channels = 1 if variant == 'hin' else in_channels

        groups = in_channels if variant == 'o2o' else 1
        out = 4 if variant == 'hin' else in_channels
        if hidden_ratio is not None and not nonlinear:
            raise ValueError(
                f'hidden_ratio: expected None with nonlinear=False, got {hidden_ratio}'
            )
        if hidden_ratio is None:
            hidden_ratio = 2 if variant == 'hin' else 1
        check_positive_int('hidden_ratio', hidden_ratio)
        hidden = hidden_ratio * (self.guide_channels if variant == 'hin' else in_channels)
        kernel_size, padding = (4, 1) if context else (2, 0)

        def encoder() -> nn.Sequential:
            width = hidden if nonlinear else out
            layers: list[nn.Module] = [
                nn.Conv2d(
                    self.guide_channels, width, kernel_size, 2, padding, groups=groups, bias=False
                )
            ]
            if nonlinear:
                layers += [
                    nn.BatchNorm2d(hidden),
                    nn.ReLU6(),
                    nn.Conv2d(hidden, out, 1, groups=groups, bias=False),
                ]
            return nn.Sequential(*layers)

        self.encoders = nn.ModuleList(encoder() for _ in range(1 if variant == 'hin' else 4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the convolutions and batch normalizations."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def encode(self, guide: Tensor) -> Tensor:
        """Encode the blocks of the guide.

        Args:
            guide: (N, Cy, Hg, Wg).

        Returns:
            Logits z (N, 4 I, ceil(Hg / 2), ceil(Wg / 2)) of I index maps (1 with ``'hin'``, else
            C), the four of a block beside each other, row-major.

        Raises:
            TypeError: No floating point tensor.
            ValueError: A shape that does not fit the module.
        """
        self._check_guide(guide)
        padded = pad_to_even(guide)
        if self.variant == 'hin':
            return self.encoders[0](padded)
        return torch.stack([encoder(padded) for encoder in self.encoders], 2).flatten(1, 2)

    def downsample(self, guide: Tensor, encoding: Tensor | None = None) -> Tensor:
        """Pool the guide with the indices, normalized over each block.

        Args:
            guide: (N, Cy, Hg, Wg).
            encoding: What `encode` gave for it. Default: it is computed.

        Returns:
            (N, Cy, ceil(Hg / 2), ceil(Wg / 2)).

        Raises:
            TypeError: No floating point tensor.
            ValueError: Shapes that do not fit the module or each other, or an index map for each
                of C channels where Cy is another number.
        """
        self._check_guide(guide)
        if self.index_channels > 1:
            self.check_equal_channels(f'downsampling with variant {self.variant!r}')
        encoding = self._encoding(guide, encoding, 4 * self.index_channels)
        indices = encoding.unflatten(1, (-1, 4)).sigmoid().softmax(2)
        return (indices.to(guide.dtype) * block_pixels(guide)).sum(2)

    def forward(self, x: Tensor, guide: Tensor, encoding: Tensor | None = None) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: Decoder feature (N, C, H, W).
            guide: Encoder feature (N, Cy, Hg, Wg), at least as large.
            encoding: What `encode` gave for the guide. Default: it is computed.

        Returns:
            (N, C, Hg, Wg).

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        encoding = self._encoding(guide, encoding, 4 * self.index_channels)
        height, width = guide.shape[2:]
        indices = F.pixel_shuffle(encoding.sigmoid(), 2)[:, :, :height, :width]
        indices = indices.to(x.dtype)
        if self.index_channels == 1:
            # A window of one value: neither way is there another map of the guide's size.
            cast = autocast_is_on(x)  # the result has the dtype of x all the same
            with torch.autocast(x.device.type, enabled=False) if cast else nullcontext():
                return assemble(indices, x, kernel_size=1)
        # The first factor gives the product its memory format.
        return upsample_parent(x, (height, width)) * indices

    def flops(self, size: tuple[int, int], guide_size: tuple[int, int]) -> int:
        """Count the multiply-adds of one image: its convolutions, and C per pixel of the guide.

        Args:
            size: (H, W) of x, which does not matter here.
            guide_size: (Hg, Wg) of the guide.

        Returns:
            Multiply-adds, each counted once.
        """
        height, width = block_grid(guide_size)
        convs = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        encode = height * width * sum(conv.weight.numel() for conv in convs)
        return encode + self.in_channels * guide_size[0] * guide_size[1]

    def extra_repr(self) -> str:
        """Show the options that no sub-module shows."""
        return f'{super().extra_repr()}, variant={self.variant!r}'
