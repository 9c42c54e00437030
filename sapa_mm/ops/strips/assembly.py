"""Assembly: weighted sums of a map over windows, and its gradient."""

import contextlib
from collections.abc import Iterator

from torch import Tensor

from ..memory import prefer_huge_pages
from .geometry import Geometry
from .products import correlate, gather, scatter
from .transfer import load_pixels_padded, load_weights, load_window, store_weights, summed


def _split(x: Tensor, groups: int) -> Tensor:
    """Return (N, G*C, H, W) as (N*G, C, H, W); a copy where the groups of an image lie mixed."""
    return x if groups == 1 else x.unflatten(1, (groups, -1)).flatten(0, 1)


@contextlib.contextmanager
def _split_target(x: Tensor, groups: int) -> Iterator[Tensor]:
    """Lend a map (N*G, C, H, W) to write to; ``x`` (N, G*C, H, W) holds it after the block."""
    n, channels, *size = x.shape
    shape = (n * groups, channels // groups, *size)
    if groups == 1 or n == 1 or x.stride(0) == channels * x.stride(1):
        yield x.view(shape)
    else:
        split = x.new_empty(shape)
        yield split
        x.copy_(split.unflatten(0, (n, groups)).flatten(1, 2))


def forward(weights: Tensor, value: Tensor, out: Tensor, kernel_size: int, groups: int) -> None:
    """Write the weighted sums of ``value`` over windows.

    Args:
        weights: (N, G * K * K, Hg, Wg), any strides.
        value: (N, G * C, H, W), likewise.
        out: (N, G * C, Hg, Wg), written to.
        kernel_size: K.
        groups: G, blocks of channels with weights of their own.
    """
    weights, value = _split(weights, groups), _split(value, groups)
    geometry = Geometry(weights, value, kernel_size)
    with _split_target(out, groups) as sums:
        prefer_huge_pages(sums)
        for strip in geometry.strips(value.shape[1]):
            w = load_weights(strip, 'weights', weights)
            gather(strip, w, load_window(strip, 'value', value), sums)


def backward(
    grad: Tensor,
    weights: Tensor,
    value: Tensor,
    grad_weights: Tensor,
    grad_value: Tensor,
    kernel_size: int,
    groups: int,
) -> None:
    """Write the gradients of weights and value.

    Args:
        grad: Gradient of the result (N, G * C, Hg, Wg), any strides.
        weights: As `forward` had it.
        value: Likewise.
        grad_weights: Written to, like ``weights``.
        grad_value: Likewise.
        kernel_size: As `forward` had it.
        groups: Likewise.
    """
    grad, weights, value = (_split(x, groups) for x in (grad, weights, value))
    geometry = Geometry(weights, value, kernel_size)
    with (
        _split_target(grad_weights, groups) as weights_target,
        _split_target(grad_value, groups) as value_target,
        summed(value_target) as value_sums,
    ):
        for strip in geometry.strips(value.shape[1]):
            g, g_padded = load_pixels_padded(strip, 'grad', grad)
            scores = correlate(strip, g, load_window(strip, 'value', value))
            store_weights(strip, scores, weights_target)
            w = load_weights(strip, 'weights', weights)
            scatter(strip, w, g_padded, value_sums)
