"""Assembly: the second half of point affiliation, a weighted sum over a window."""

import torch
from torch import Tensor

from . import checks
from .dispatch import autocast, requested_backend, use_triton, without_autocast
from .memory import prefer_huge_pages
from .window import Geometry, accumulation_dtype, empty_map


def assemble(weights: Tensor, value: Tensor, *, kernel_size: int = 5, groups: int = 1) -> Tensor:
    r"""Weighted sum of ``value`` over the window around every output pixel's parent.

    .. math:: o_{l'} = \sum_p w_{l'}(p)\, v_{l+p}

    with the parent l = (i * H) // Hg of row i, likewise for columns (SAPA, Lu et al., NeurIPS
    2022; also the assembly of CARAFE). Outside the image the value is 0. Sums are kept in float32
    (float64 for float64). Under autocast both tensors are cast to autocast's dtype. With groups,
    the channels of ``value`` fall into as many equal blocks, each with weights of its own.

    Args:
        weights: (N, G*K*K, Hg, Wg), float16, bfloat16, float32 or float64, any strides; group by
            group, window positions row-major.
        value: (N, C, H, W), dtype and device of ``weights``.
        kernel_size: Window size K, odd.
        groups: G, which divides C.

    Returns:
        (N, C, Hg, Wg) in the dtype and memory format of ``value``.

    Raises:
        TypeError: Not tensors, not of one floating dtype, or ``kernel_size`` or ``groups``
            not an int.
        ValueError: Shapes that do not fit each other, empty tensors, several devices, ``weights``
            smaller than ``value``, an even ``kernel_size``, or ``groups`` that do not divide C.
    """
    weights, value = autocast(weights, value)
    checks.check_kernel_size(kernel_size)
    checks.check_weights(weights, value, kernel_size, groups)
    return _forward(weights, value, kernel_size, groups, requested_backend())


def _split_groups(x: Tensor, groups: int) -> Tensor:
    """(N, G*C, H, W) as (N*G, C, H, W); a view unless the channels are innermost in memory."""
    return x if groups == 1 else x.unflatten(1, (groups, -1)).flatten(0, 1)


def _join_groups(x: Tensor, groups: int, like: Tensor) -> Tensor:
    """Bring (N*G, C, H, W) back to (N, G*C, H, W), in the memory format of ``like``."""
    if groups == 1:
        return x
    joined = x.unflatten(0, (-1, groups)).flatten(1, 2)
    return empty_map(like, joined.shape[1], joined.shape[2:]).copy_(joined)


@torch.library.custom_op('sapa_mm::assemble', mutates_args=())
@without_autocast
def _forward(
    weights: Tensor, value: Tensor, kernel_size: int, groups: int = 1, backend: str = 'auto'
) -> Tensor:
    if use_triton(backend, weights, value, kernel_size):
        from ..kernels import assembly as kernels

        out = empty_map(value, value.shape[1], weights.shape[2:])
        kernels.forward(weights, value, out, kernel_size, groups)
        return out
    like = value
    weights, value = _split_groups(weights, groups), _split_groups(value, groups)
    geometry = Geometry(weights, value, kernel_size)
    out = prefer_huge_pages(empty_map(value, value.shape[1], weights.shape[2:]))
    for strip in geometry.strips(value.shape[1]):
        w = geometry.load_weights(weights, strip)
        v = geometry.load_window('value', value, strip)
        geometry.store_pixels(geometry.gather(w, v, strip), out, strip)
    return _join_groups(out, groups, like)


@_forward.register_fake
def _(weights, value, kernel_size, groups=1, backend='auto'):
    return empty_map(value, value.shape[1], weights.shape[2:])


@torch.library.custom_op('sapa_mm::assemble_backward', mutates_args=())
@without_autocast
def _backward(
    grad: Tensor,
    weights: Tensor,
    value: Tensor,
    kernel_size: int,
    groups: int,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor]:
    if use_triton(backend, weights, value, kernel_size):
        from ..kernels import assembly, similarity

        grad_weights, grad_value = torch.empty_like(weights), torch.empty_like(value)
        similarity.forward(grad, value, grad_weights, kernel_size, groups)
        assembly.backward(weights, grad, grad_value, kernel_size, groups)
        return grad_weights, grad_value
    like = weights, value
    grad, weights, value = (_split_groups(x, groups) for x in (grad, weights, value))
    geometry = Geometry(weights, value, kernel_size)
    grad_weights = torch.empty_like(weights)
    grad_value = torch.zeros_like(value, dtype=accumulation_dtype(value.dtype))
    for strip in geometry.strips(value.shape[1]):
        g, g_padded = geometry.load_pixels_padded('grad', grad, strip)
        scores = geometry.correlate(g, geometry.load_window('value', value, strip), strip)
        geometry.store_weights(scores, grad_weights, strip)
        w = geometry.load_weights(weights, strip)
        geometry.add_window(geometry.scatter(w, g_padded, strip), grad_value, strip)
    grads = grad_weights, grad_value.to(value.dtype)
    return tuple(_join_groups(x, groups, y) for x, y in zip(grads, like, strict=True))


@_backward.register_fake
def _(grad, weights, value, kernel_size, groups=1, backend='auto'):
    return torch.empty_like(weights), torch.empty_like(value)


def _setup_context(ctx, inputs, output):
    weights, value, *ctx.options = inputs
    ctx.save_for_backward(weights, value)


def _autograd(ctx, grad):
    return *_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
