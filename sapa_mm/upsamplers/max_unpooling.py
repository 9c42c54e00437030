"""Max unpooling, the paired baseline of learned upsampling."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.layout import in_format_of
from ..ops.parents import upsample_parent
from .base import PairedUpsampler
from .registration import MODELS


@MODELS.register_module()
class MaxUnpooling(PairedUpsampler):
    r"""Put each value of the decoder feature where the encoder feature has its maximum.

    .. math::
        o_{l'} = x_l \; [\, l' = \arg\max_{m \in \mathrm{block}(l')} y_m \,], \qquad
        \mathrm{down}(y)_l = \max_{l' \in l} y_{l'}

    with blocks of 2 x 2 pixels of the guide y, channel by channel; everything else is 0 (SegNet,
    Badrinarayanan et al., 2017). Nothing is learned, and the guide receives no gradient from the
    upsampling.

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels of the guide, which must be C. Default: ``in_channels``.
        init_cfg: As in every mmengine module; there is nothing to initialize.

    Raises:
        TypeError: Channels that are no ints.
        ValueError: Channels that differ.
    """

    encoding_dtype = torch.int64

    def __init__(
        self, in_channels: int, guide_channels: int | None = None, init_cfg: dict | None = None
    ):
        super().__init__(in_channels, guide_channels, init_cfg)
        self.check_equal_channels('max unpooling')

    def encode(self, guide: Tensor) -> Tensor:
        """Find the maximum of every block.

        Args:
            guide: (N, C, Hg, Wg).

        Returns:
            Positions row * Wg + column, (N, C, ceil(Hg / 2), ceil(Wg / 2)), int64.

        Raises:
            TypeError: No floating point tensor.
            ValueError: A shape that does not fit the module.
        """
        self._check_guide(guide)
        return F.max_pool2d(guide, 2, ceil_mode=True, return_indices=True)[1]

    def downsample(self, guide: Tensor, encoding: Tensor | None = None) -> Tensor:
        """Take the maximum of every block.

        Args:
            guide: (N, C, Hg, Wg).
            encoding: What `encode` gave for it. Default: it is computed.

        Returns:
            (N, C, ceil(Hg / 2), ceil(Wg / 2)).

        Raises:
            TypeError: No floating point tensor.
            ValueError: Shapes that do not fit the module or each other.
        """
        self._check_guide(guide)
        encoding = self._encoding(guide, encoding, self.in_channels)
        return guide.flatten(2).gather(2, encoding.flatten(2)).view(encoding.shape)

    def forward(self, x: Tensor, guide: Tensor, encoding: Tensor | None = None) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: Decoder feature (N, C, H, W).
            guide: Encoder feature (N, C, Hg, Wg), at least as large.
            encoding: What `encode` gave for the guide. Default: it is computed.

        Returns:
            (N, C, Hg, Wg).

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        encoding = self._encoding(guide, encoding, self.in_channels)
        places = encoding.flatten(2)
        nowhere = torch.zeros(guide.shape, dtype=torch.bool, device=guide.device).flatten(2)
        # `torch.jit.trace`, which counts FLOPs, knows no other form.
        is_maximum = nowhere.scatter(2, places, torch.ones_like(places, dtype=torch.bool))
        is_maximum = is_maximum.view(guide.shape)
        is_maximum = in_format_of(x, is_maximum)
        return torch.where(is_maximum, upsample_parent(x, tuple(guide.shape[2:])), 0)

    def flops(self, size: tuple[int, int], guide_size: tuple[int, int]) -> int:
        """Count the multiply-adds of one image: none, values are only moved."""
        return 0
