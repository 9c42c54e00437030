"""Point affiliation does similarity, normalization and assembly in one pass."""

from torch import Tensor

from ..dispatch import without_autocast
from ..memory import prefer_huge_pages
from ..normalization import normalize, normalize_backward
from .geometry import Geometry
from .products import correlate, gather, scatter
from .transfer import load_pixels, load_pixels_padded, load_window, summed


@without_autocast
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    eps: float,
) -> None:
    """Write the upsampled ``value``.

    Args:
        query: (N, D, Hg, Wg), any strides.
        key: (N, D, H, W), likewise.
        value: (N, C, H, W), likewise.
        out: (N, C, Hg, Wg), written to.
        kernel_size: K.
        normalization: 'softmax', 'sigmoid', 'relu', 'softplus' or 'none'.
        temperature: T, by which the inner products are divided.
        border: 'zero', 'mask' or 'replicate'.
        eps: Added to the sum that the three normalizations in the middle divide by.
    """
    geometry = Geometry(query, value, kernel_size, border)
    prefer_huge_pages(out)
    for strip in geometry.strips(max(query.shape[1], value.shape[1])):
        q = load_pixels(strip, 'query', query)
        scores = correlate(strip, q, load_window(strip, 'key', key)).div_(temperature)
        weights = normalize(scores, normalization, strip.valid(), eps)
        gather(strip, weights, load_window(strip, 'value', value), out)


@without_autocast
def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    grad_value: Tensor | None,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    eps: float,
) -> None:
    """Write the gradients that are asked for.

    Args:
        grad: Gradient of the result (N, C, Hg, Wg), any strides.
        query: As `forward` had it.
        key: Likewise.
        value: Likewise.
        grad_query: Written to, like ``query``; or None, like the next two.
        grad_key: Likewise.
        grad_value: Likewise.
        kernel_size: As `forward` had it.
        normalization: Likewise.
        temperature: Likewise.
        border: Likewise.
        eps: Likewise.
    """
    geometry = Geometry(query, value, kernel_size, border)
    with summed(grad_key) as key_sums, summed(grad_value) as value_sums:
        for strip in geometry.strips(max(query.shape[1], value.shape[1])):
            q, q_padded = load_pixels_padded(strip, 'query', query)
            g, g_padded = load_pixels_padded(strip, 'grad', grad)
            k = load_window(strip, 'key', key)
            valid = strip.valid()
            # The weights are computed again: that costs less than to keep and read them.
            scores = correlate(strip, q, k).div_(temperature)
            weights = normalize(scores, normalization, valid, eps)
            if value_sums is not None:
                scatter(strip, weights, g_padded, value_sums)
            if grad_query is None and key_sums is None:
                continue
            grad_weights = correlate(strip, g, load_window(strip, 'value', value))
            grad_scores = normalize_backward(
                grad_weights, scores, weights, normalization, valid, eps
            )
            grad_scores = grad_scores.div_(temperature)
            if grad_query is not None:
                gather(strip, grad_scores, k, grad_query)
            if key_sums is not None:
                scatter(strip, grad_scores, q_padded, key_sums)
