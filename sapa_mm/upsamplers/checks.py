"""Checks that all upsamplers share."""

from torch import Tensor

from ..ops.checks import check_alike, check_map, check_sizes
from ..ops.dispatch import autocast_is_on


def check_feature(name: str, feature: Tensor, channels: int, layout: str) -> None:
    """Raise TypeError or ValueError unless it is a floating point map with these channels."""
    check_map(name, feature, layout)
    if feature.shape[1] != channels:
        raise ValueError(f'{name}: expected {channels} channels, got {feature.shape[1]}')


def check_features(
    x: Tensor,
    guide: Tensor,
    in_channels: int,
    guide_channels: int,
    names: tuple[str, str] = ('x', 'guide'),
) -> None:
    """Check the two inputs of an upsampler before it starts.

    Args:
        x: Decoder feature (N, C, H, W).
        guide: Encoder feature (N, Cy, Hg, Wg).
        in_channels: C.
        guide_channels: Cy.
        names: What the caller calls the two.

    Raises:
        TypeError: Not tensors, not floating point, or, without autocast, of two dtypes.
        ValueError: Wrong rank, channels, batch or device, or a guide smaller than ``x``.
    """
    low, high = names
    check_feature(low, x, in_channels, '(N, C, H, W)')
    check_feature(high, guide, guide_channels, '(N, Cy, Hg, Wg)')
    check_alike(high, guide, low, x, same_dtype=not autocast_is_on(x))
    check_sizes(high, guide, low, x)
