"""Assembly, the second half of point affiliation, is a weighted sum over a window."""

from collections.abc import Sequence

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

_IMPLEMENTATIONS = {'torch': '.strips.assembly', 'triton': '.launches.assembly'}


def assemble(weights: Tensor, value: Tensor, *, kernel_size: int = 5, groups: int = 1) -> Tensor:
    r"""Compute the weighted sum of ``value`` over the window around every output pixel's parent.

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


@operator(
    'assemble',
    '(Tensor weights, Tensor value, SymInt kernel_size, SymInt groups=1, '
    'str backend="auto") -> Tensor',
)
def _forward(
    weights: Tensor, value: Tensor, kernel_size: int, groups: int = 1, backend: str = 'auto'
) -> Tensor:
    out = empty_map(value, value.shape[1], weights.shape[2:])
    run = implementation(_IMPLEMENTATIONS, backend, weights, value, kernel_size)
    run.forward(weights, value, out, kernel_size, groups)
    return out


@_forward.register_fake
def _(weights, value, kernel_size, groups=1, backend='auto'):
    return empty_map(value, value.shape[1], weights.shape[2:])


@operator(
    'assemble_backward',
    '(Tensor grad, Tensor weights, Tensor value, SymInt kernel_size, SymInt groups, '
    'bool[] needs, str backend="auto") -> (Tensor, Tensor)',
)
def _backward(
    grad: Tensor,
    weights: Tensor,
    value: Tensor,
    kernel_size: int,
    groups: int,
    needs: Sequence[bool],
    backend: str = 'auto',
) -> tuple[Tensor, ...]:
    grads = empty_gradients((weights, value), needs)
    wanted = [x if need else None for x, need in zip(grads, needs, strict=True)]
    run = implementation(_IMPLEMENTATIONS, backend, weights, value, kernel_size)
    run.backward(grad, weights, value, *wanted, kernel_size, groups)
    return grads


@_backward.register_fake
def _(grad, weights, value, kernel_size, groups, needs, backend='auto'):
    return empty_gradients((weights, value), needs)


def _setup_context(ctx, inputs, output):
    weights, value, *ctx.options, ctx.backend = inputs
    ctx.save_for_backward(weights, value)


def _autograd(ctx, grad):
    needs = list(ctx.needs_input_grad[:2])
    grads = _backward(grad, *ctx.saved_tensors, *ctx.options, needs, ctx.backend)
    return *given_gradients(grads, needs), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
