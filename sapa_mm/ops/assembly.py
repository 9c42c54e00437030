"""Assembly: the second half of point affiliation, a weighted sum over a window."""

import torch
from torch import Tensor

from . import checks
from .dispatch import autocast, without_autocast
from .memory import prefer_huge_pages
from .window import Geometry, accumulation_dtype, empty_map


def assemble(weights: Tensor, value: Tensor, *, kernel_size: int = 5) -> Tensor:
    r"""Weighted sum of ``value`` over the window around every output pixel's parent.

    .. math:: o_{l'} = \sum_p w_{l'}(p)\, v_{l+p}

    with the parent l = (i * H) // Hg of row i, likewise for columns (SAPA, Lu et al., NeurIPS
    2022; also the assembly of CARAFE). Outside the image the value is 0. Sums are kept in float32
    (float64 for float64). Under autocast both tensors are cast to autocast's dtype.

    Args:
        weights: (N, K*K, Hg, Wg), float16, bfloat16, float32 or float64, any strides; window
            positions row-major.
        value: (N, C, H, W), dtype and device of ``weights``.
        kernel_size: Window size K, odd.

    Returns:
        (N, C, Hg, Wg) in the dtype and memory format of ``value``.

    Raises:
        TypeError: Not tensors, not of one floating dtype, or ``kernel_size`` not an int.
        ValueError: Shapes that do not fit each other, empty tensors, several devices, ``weights``
            smaller than ``value``, or an even ``kernel_size``.
    """
    weights, value = autocast(weights, value)
    checks.check_kernel_size(kernel_size)
    checks.check_weights(weights, value, kernel_size)
    return _forward(weights, value, kernel_size)


@torch.library.custom_op('sapa_mm::assemble', mutates_args=())
@without_autocast
def _forward(weights: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    geometry = Geometry(weights, value, kernel_size)
    out = prefer_huge_pages(empty_map(value, value.shape[1], weights.shape[2:]))
    for strip in geometry.strips(value.shape[1]):
        w = geometry.load_weights(weights, strip)
        v = geometry.load_window('value', value, strip)
        geometry.store_pixels(geometry.gather(w, v, strip), out, strip)
    return out


@_forward.register_fake
def _(weights, value, kernel_size):
    return empty_map(value, value.shape[1], weights.shape[2:])


@torch.library.custom_op('sapa_mm::assemble_backward', mutates_args=())
@without_autocast
def _backward(
    grad: Tensor, weights: Tensor, value: Tensor, kernel_size: int
) -> tuple[Tensor, Tensor]:
    geometry = Geometry(weights, value, kernel_size)
    grad_weights = torch.empty_like(weights)
    grad_value = torch.zeros_like(value, dtype=accumulation_dtype(value.dtype))
    for strip in geometry.strips(value.shape[1]):
        g, g_padded = geometry.load_pixels_padded('grad', grad, strip)
        scores = geometry.correlate(g, geometry.load_window('value', value, strip), strip)
        geometry.store_weights(scores, grad_weights, strip)
        w = geometry.load_weights(weights, strip)
        geometry.add_window(geometry.scatter(w, g_padded, strip), grad_value, strip)
    return grad_weights, grad_value.to(value.dtype)


@_backward.register_fake
def _(grad, weights, value, kernel_size):
    return torch.empty_like(weights), torch.empty_like(value)


def _setup_context(ctx, inputs, output):
    weights, value, ctx.kernel_size = inputs
    ctx.save_for_backward(weights, value)


def _autograd(ctx, grad):
    return *_backward(grad, *ctx.saved_tensors, ctx.kernel_size), None


_forward.register_autograd(_autograd, setup_context=_setup_context)
