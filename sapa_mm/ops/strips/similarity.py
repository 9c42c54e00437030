"""Local similarity computes inner products of pixels with the window around their parents."""

from torch import Tensor

from ..dispatch import without_autocast
from .geometry import Geometry
from .products import correlate, gather, scatter
from .transfer import (
    load_pixels,
    load_pixels_padded,
    load_weights,
    load_window,
    store_weights,
    summed,
)


@without_autocast
def forward(query: Tensor, key: Tensor, out: Tensor, kernel_size: int, temperature: float) -> None:
    """Write the inner products of pixels and windows, divided by ``temperature``.

    Args:
        query: (N, D, Hg, Wg), any strides.
        key: (N, D, H, W), likewise.
        out: (N, K * K, Hg, Wg), written to; positions row-major.
        kernel_size: K.
        temperature: T.
    """
    geometry = Geometry(query, key, kernel_size)
    for strip in geometry.strips(query.shape[1]):
        q = load_pixels(strip, 'query', query)
        scores = correlate(strip, q, load_window(strip, 'key', key))
        store_weights(strip, scores.div_(temperature), out)


@without_autocast
def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    kernel_size: int,
    temperature: float,
) -> None:
    """Write the gradients that are asked for.

    Args:
        grad: Gradient of the result (N, K * K, Hg, Wg), any strides.
        query: As `forward` had it.
        key: Likewise.
        grad_query: Written to, like ``query``; or None, like the next.
        grad_key: Likewise.
        kernel_size: As `forward` had it.
        temperature: Likewise.
    """
    geometry = Geometry(query, key, kernel_size)
    with summed(grad_key) as key_sums:
        for strip in geometry.strips(query.shape[1]):
            grad_scores = load_weights(strip, 'grad', grad) / temperature
            if grad_query is not None:
                gather(strip, grad_scores, load_window(strip, 'key', key), grad_query)
            if key_sums is not None:
                _, q_padded = load_pixels_padded(strip, 'query', query)
                scatter(strip, grad_scores, q_padded, key_sums)
