"""What the upsamplers share: channels, checks and initialization."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_positive_int
from ..ops.layout import in_format_of
from ..ops.parents import are_symbols
from .checks import check_feature, check_features
from .registration import BaseModule


class SelfInitialized(BaseModule):
    """A module that initializes itself, whatever the ``init_cfg`` of what holds it says."""

    def reset_parameters(self) -> None:
        """Initialize the parameters. Without an override they stay as PyTorch made them."""

    def init_weights(self) -> None:
        """Initialize again, after whatever the host's ``init_cfg`` did to the layers inside."""
        if self.init_cfg is None and not self.is_init:
            self.reset_parameters()
        super().init_weights()


class Upsampler(SelfInitialized):
    """Base of the upsamplers ``forward(x, guide)``.

    A sub-class defines ``forward``. With `reset_parameters` it defines its initialization, and with
    ``flops(size, guide_size)`` its complexity.

    Args:
        in_channels: Channels C of the decoder feature x.
        guide_channels: Channels Cy of the guide. Default: ``in_channels``.
        init_cfg: As in every mmengine module. Default: what `reset_parameters` does.

    Raises:
        TypeError: Channels that are no ints.
        ValueError: Channels that are not positive.
    """

    def __init__(
        self, in_channels: int, guide_channels: int | None = None, init_cfg: dict | None = None
    ):
        super().__init__(init_cfg)
        guide_channels = in_channels if guide_channels is None else guide_channels
        check_positive_int('in_channels', in_channels)
        check_positive_int('guide_channels', guide_channels)
        self.in_channels = in_channels
        self.guide_channels = guide_channels

    def check_equal_channels(self, option: str) -> None:
        """Raise ValueError, naming the ``option`` that asks for it, unless Cy = C."""
        if self.guide_channels != self.in_channels:
            raise ValueError(
                f'guide_channels: {option} expected {self.in_channels} like in_channels, got '
                f'{self.guide_channels}'
            )

    def check_inputs(self, x: Tensor, guide: Tensor) -> None:
        """Raise TypeError or ValueError unless ``x`` and ``guide`` fit this module."""
        check_features(x, guide, self.in_channels, self.guide_channels)

    def extra_repr(self) -> str:
        """Show the options that no sub-module shows."""
        return f'{self.in_channels}, guide_channels={self.guide_channels}'


class PairedUpsampler(Upsampler):
    """Base of the upsamplers that downsample as well, by the same reading of the guide.

    An encoder that pools with `downsample` passes what `encode` gave it on to ``forward``, so that
    the two are a pair and the guide is read once. Alone, each of them reads the guide itself. The
    guide falls into blocks of 2 x 2 pixels, of which an odd one leaves the last ones incomplete.
    """

    #: `encode` gives a tensor of this dtype, if it gives no floating point tensor.
    encoding_dtype: torch.dtype | None = None

    def encode(self, guide: Tensor) -> Tensor:
        """Read the guide (N, Cy, Hg, Wg): (N, E, h, w), h = ceil(Hg / 2), w = ceil(Wg / 2)."""
        raise NotImplementedError

    def downsample(self, guide: Tensor, encoding: Tensor | None = None) -> Tensor:
        """Pool the guide (N, Cy, Hg, Wg) to (N, Cy, h, w)."""
        raise NotImplementedError

    def _check_guide(self, guide: Tensor) -> None:
        check_feature('guide', guide, self.guide_channels, '(N, Cy, Hg, Wg)')

    def _encoding(self, guide: Tensor, encoding: Tensor | None, channels: int) -> Tensor:
        """Return the encoding that was given, if it fits the guide, or that of the guide."""
        if encoding is None:
            return self.encode(guide)
        if not isinstance(encoding, Tensor):
            raise TypeError(
                f'encoding: expected the tensor that encode gave, got {type(encoding).__name__}'
            )
        if self.encoding_dtype not in (None, encoding.dtype):
            raise TypeError(f'encoding: expected {self.encoding_dtype}, got {encoding.dtype}')
        expected = (guide.shape[0], channels, *block_grid(guide.shape[2:]))
        if tuple(encoding.shape) != expected:
            raise ValueError(
                f'encoding: expected that of the guide, {expected}, got {tuple(encoding.shape)}'
            )
        return encoding


def zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    """Set the bias of a layer to 0, if it has one."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def block_grid(size: Sequence[int]) -> tuple[int, int]:
    """Count the blocks of 2 x 2 pixels that cover a map of ``size``, down and across."""
    return -(-size[0] // 2), -(-size[1] // 2)


def pad_to_even(guide: Tensor) -> Tensor:
    """Pad (N, C, Hg, Wg) with zeros below and on the right to even sizes."""
    height, width = guide.shape[2:]
    if not are_symbols(height, width) and height % 2 == width % 2 == 0:
        return guide
    return F.pad(guide, (0, width % 2, 0, height % 2))


def block_pixels(guide: Tensor) -> Tensor:
    """Return the four pixels of every block of (N, C, Hg, Wg), row-major: (N, C, 4, h, w).

    A last block that the map leaves incomplete has zeros.
    """
    padded = pad_to_even(guide)
    if not are_symbols(*guide.shape[2:]):
        return F.pixel_unshuffle(padded, 2).unflatten(1, (-1, 4))
    # In an exported program that would make the number of channels a formula of the sizes.
    corners = [padded[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.stack(corners, 2)


def fit_to_size(out: Tensor, x: Tensor, size: Sequence[int], ratio: int) -> Tensor:
    """Fit what a layer with a fixed ratio gave to the guide's size.

    Args:
        out: (N, C, h, w).
        x: What the layer upsampled, (N, C, H, W).
        size: (Hg, Wg).
        ratio: What the layer upsamples by.

    Returns:
        (N, C, Hg, Wg), contiguous in the memory format of ``x``: an overshoot by less than the
        ratio is cropped at the bottom and right, any other difference is interpolated bilinearly.
    """
    overshoot = [have - want for have, want in zip(out.shape[2:], size, strict=True)]
    if all(0 <= difference < ratio for difference in overshoot):
        out = out[:, :, : size[0], : size[1]]
    else:
        out = F.interpolate(out, size, mode='bilinear', align_corners=False)
    return in_format_of(x, out)
