"""Local similarity is the first half of point affiliation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks
from .dispatch import (
    autocast,
    empty_gradients,
    given_gradients,
    implementation,
    operator,
    requested_backend,
)
from .layout import empty_map

_IMPLEMENTATIONS = {'torch': '.strips.similarity', 'triton': '.launches.similarity'}


def local_similarity(
    query: Tensor, key: Tensor, *, kernel_size: int = 5, temperature: float = 1.0
) -> Tensor:
    r"""Compute the inner products of every high-resolution point with its parent's window.

    .. math:: s_{l'}(p) = \langle q_{l'}, k_{l+p} \rangle / T

    with the parent l = (i * H) // Hg of row i, likewise for columns (SAPA, Lu et al., NeurIPS
    2022). Window positions outside the image have score 0. Sums are kept in float32 (float64 for
    float64); under autocast the result is float32, so that a normalization loses nothing.

    Args:
        query: (N, D, Hg, Wg), float16, bfloat16, float32 or float64, any strides.
        key: (N, D, H, W), dtype and device of ``query``.
        kernel_size: Window size K, odd.
        temperature: T.

    Returns:
        Scores (N, K*K, Hg, Wg) in the dtype and memory format of ``query``, window positions
        row-major.

    Raises:
        TypeError: Not tensors, not of one floating dtype, or ``kernel_size`` or ``temperature``
            not a number.
        ValueError: Shapes that do not fit each other, empty tensors, several devices, ``query``
            smaller than ``key``, or an even ``kernel_size``.
    """
    query, key = autocast(query, key, dtype=torch.float32)
    checks.check_pair(query, key)
    checks.check_kernel_size(kernel_size)
    checks.check_positive('temperature', temperature)
    return _forward(query, key, kernel_size, float(temperature), requested_backend())


@operator(
    'local_similarity',
    '(Tensor query, Tensor key, SymInt kernel_size, float temperature, '
    'str backend="auto") -> Tensor',
)
def _forward(
    query: Tensor, key: Tensor, kernel_size: int, temperature: float, backend: str = 'auto'
) -> Tensor:
    out = empty_map(query, kernel_size**2, query.shape[2:])
    run = implementation(_IMPLEMENTATIONS, backend, query, key, kernel_size)
    run.forward(query, key, out, kernel_size, temperature)
    return out


@_forward.register_fake
def _(query, key, kernel_size, temperature, backend='auto'):
    return empty_map(query, kernel_size**2, query.shape[2:])


@operator(
    'local_similarity_backward',
    '(Tensor grad, Tensor query, Tensor key, SymInt kernel_size, float temperature, '
    'bool[] needs, str backend="auto") -> (Tensor, Tensor)',
)
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    kernel_size: int,
    temperature: float,
    needs: Sequence[bool],
    backend: str = 'auto',
) -> tuple[Tensor, ...]:
    grads = empty_gradients((query, key), needs)
    wanted = [x if need else None for x, need in zip(grads, needs, strict=True)]
    run = implementation(_IMPLEMENTATIONS, backend, query, key, kernel_size)
    run.backward(grad, query, key, *wanted, kernel_size, temperature)
    return grads


@_backward.register_fake
def _(grad, query, key, kernel_size, temperature, needs, backend='auto'):
    return empty_gradients((query, key), needs)


def _setup_context(ctx, inputs, output):
    query, key, *ctx.options, ctx.backend = inputs
    ctx.save_for_backward(query, key)


def _autograd(ctx, grad):
    needs = list(ctx.needs_input_grad[:2])
    grads = _backward(grad, *ctx.saved_tensors, *ctx.options, needs, ctx.backend)
    return *given_gradients(grads, needs), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
