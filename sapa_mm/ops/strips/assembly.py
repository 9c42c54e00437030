"""Assembly computes weighted sums of a map over windows."""

from torch import Tensor

from ..dispatch import without_autocast
from ..memory import prefer_huge_pages
from .geometry import Geometry
from .products import correlate, gather, scatter
from .transfer import load_pixels_padded, load_weights, load_window, store_weights, summed


def _split(x: Tensor, groups: int) -> Tensor:
    """View (N, G*C, H, W) as (N*G, C, H, W), or copy it where that is no view."""
    return x if groups == 1 else x.unflatten(1, (groups, -1)).flatten(0, 1)


def _split_target(x: Tensor, groups: int) -> Tensor:
    """View (N, G*C, H, W) as (N*G, C, H, W), or return new memory where that is no view."""
    n, channels, *size = x.shape
    if groups == 1:
        return x
    shape = (n * groups, channels // groups, *size)
    is_view = n == 1 or x.stride(0) == channels * x.stride(1)
    return x.view(shape) if is_view else x.new_empty(shape)


def _join(split: Tensor, x: Tensor) -> None:
    """Write what `_split_target` made of ``x`` back into it, where that is no view."""
    if split.data_ptr() != x.data_ptr():
        x.copy_(split.unflatten(0, (len(x), -1)).flatten(1, 2))


@without_autocast
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
    sums = _split_target(out, groups)
    prefer_huge_pages(sums)
    for strip in geometry.strips(value.shape[1]):
        w = load_weights(strip, 'weights', weights)
        gather(strip, w, load_window(strip, 'value', value), sums)
    _join(sums, out)


@without_autocast
def backward(
    grad: Tensor,
    weights: Tensor,
    value: Tensor,
    grad_weights: Tensor | None,
    grad_value: Tensor | None,
    kernel_size: int,
    groups: int,
) -> None:
    """Write the gradients that are asked for.

    Args:
        grad: Gradient of the result (N, G * C, Hg, Wg), any strides.
        weights: As `forward` had it.
        value: Likewise.
        grad_weights: Written to, like ``weights``; or None, like the next.
        grad_value: Likewise.
        kernel_size: As `forward` had it.
        groups: Likewise.
    """
    grad, weights, value = (_split(x, groups) for x in (grad, weights, value))
    geometry = Geometry(weights, value, kernel_size)
    weights_target = None if grad_weights is None else _split_target(grad_weights, groups)
    value_target = None if grad_value is None else _split_target(grad_value, groups)
    with summed(value_target) as value_sums:
        for strip in geometry.strips(value.shape[1]):
            g, g_padded = load_pixels_padded(strip, 'grad', grad)
            if weights_target is not None:
                scores = correlate(strip, g, load_window(strip, 'value', value))
                store_weights(strip, scores, weights_target)
            if value_sums is not None:
                w = load_weights(strip, 'weights', weights)
                scatter(strip, w, g_padded, value_sums)
    if grad_weights is not None and weights_target is not None:
        _join(weights_target, grad_weights)
    if grad_value is not None and value_target is not None:
        _join(value_target, grad_value)
