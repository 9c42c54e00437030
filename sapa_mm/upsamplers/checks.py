"""Checks that all upsamplers share."""

from torch import Tensor

from ..ops.checks import check_map, check_sizes
from ..ops.dispatch import autocast_is_on


def check_channels(name: str, channels: object) -> None:
    """Raise TypeError unless a number of channels is an int, ValueError unless positive."""
    if isinstance(channels, bool) or not isinstance(channels, int):
        raise TypeError(f'{name}: expected a positive int, got {channels!r}')
    if channels < 1:
        raise ValueError(f'{name}: expected a positive int, got {channels}')


def check_features(x: Tensor, guide: Tensor, in_channels: int, guide_channels: int) -> None:
    """Check the two inputs of an upsampler before it starts.

    Args:
        x: Decoder feature (N, C, H, W).
        guide: Encoder feature (N, Cy, Hg, Wg).
        in_channels: C.
        guide_channels: Cy.

    Raises:
        TypeError: Not tensors, not floating point, or, without autocast, of two dtypes.
        ValueError: Wrong rank, channels, batch or device, or a guide smaller than ``x``.
    """
    for name, feature, channels, layout in (
        ('x', x, in_channels, '(N, C, H, W)'),
        ('guide', guide, guide_channels, '(N, Cy, Hg, Wg)'),
    ):
        check_map(name, feature, layout)
        if feature.shape[1] != channels:
            raise ValueError(f'{name}: expected {channels} channels, got {feature.shape[1]}')
    if guide.device != x.device:
        raise ValueError(f'guide: expected device {x.device} like x, got {guide.device}')
    if guide.dtype != x.dtype and not autocast_is_on(x):
        raise TypeError(f'guide: expected {x.dtype} like x, got {guide.dtype}')
    if guide.shape[0] != x.shape[0]:
        raise ValueError(f'guide: expected batch size {x.shape[0]} like x, got {guide.shape[0]}')
    check_sizes('guide', guide, 'x', x)
