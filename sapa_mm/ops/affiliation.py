"""Point affiliation is similarity, normalization and assembly in one operator."""

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
from .normalization import NORMALIZATION_EPS, NORMALIZATIONS

BORDERS = ('zero', 'mask', 'replicate')

_IMPLEMENTATIONS = {'torch': '.strips.affiliation', 'triton': '..kernels.affiliation'}
_BACKWARD = _IMPLEMENTATIONS | {'triton': '..kernels.affiliation_backward'}


def point_affiliation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel_size: int = 5,
    normalization: str = 'softmax',
    temperature: float = 1.0,
    border: str = 'zero',
) -> Tensor:
    r"""Upsample ``value`` with kernels made from the similarity of ``query`` and ``key``.

    For the output pixel l' with parent l and the window offsets p:

    .. math::
        w_{l'}(p) = h(\langle q_{l'}, k_{l+p} \rangle / T) / \sum_{p'} h(\cdot), \qquad
        o_{l'} = \sum_p w_{l'}(p)\, v_{l+p}

    (SAPA, Lu et al., NeurIPS 2022, equations of its section 3, with :math:`h = \exp` and T = 1).
    The parent of pixel i is ``(i * H) // Hg``, likewise for columns, so any size ratio of at least
    1 works.

    Scores and weights are kept in float32 (float64 for float64). Under autocast the three tensors
    are cast to autocast's dtype, as for a matrix product.

    Args:
        query: (N, D, Hg, Wg), float16, bfloat16, float32 or float64, any strides.
        key: (N, D, H, W), dtype and device of ``query``.
        value: (N, C, H, W), likewise.
        kernel_size: Window size K, odd.
        normalization: ``'softmax'`` (h = exp); ``'sigmoid'``, ``'relu'`` or ``'softplus'`` (the
            sum in the denominator plus 1e-6); ``'none'`` uses the scores as weights.
        temperature: T, by which the scores are divided.
        border: Window positions outside the image hold key 0 and value 0 and take part in the
            normalization (``'zero'``), take no part in it (``'mask'``), or repeat the image's edge
            (``'replicate'``).

    Returns:
        (N, C, Hg, Wg) in the dtype and memory format of ``value``.

    Raises:
        TypeError: Not tensors, not of one floating dtype, or ``kernel_size`` or ``temperature``
            not a number.
        ValueError: Shapes that do not fit each other, empty tensors, several devices, ``query``
            smaller than ``key``, an even ``kernel_size``, or an unknown option.
    """
    query, key, value = autocast(query, key, value)
    checks.check_pair(query, key)
    checks.check_value(value, key)
    checks.check_kernel_size(kernel_size)
    checks.check_choice('normalization', normalization, NORMALIZATIONS)
    checks.check_positive('temperature', temperature)
    checks.check_choice('border', border, BORDERS)
    options = (kernel_size, normalization, float(temperature), border, requested_backend())
    return _forward(query, key, value, *options)


@operator(
    'point_affiliation',
    '(Tensor query, Tensor key, Tensor value, SymInt kernel_size, str normalization, '
    'float temperature, str border, str backend="auto") -> Tensor',
)
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    backend: str = 'auto',
) -> Tensor:
    out = empty_map(value, value.shape[1], query.shape[2:])
    options = (kernel_size, normalization, temperature, border, NORMALIZATION_EPS)
    run = implementation(_IMPLEMENTATIONS, backend, query, value, kernel_size)
    run.forward(query, key, value, out, *options)
    return out


@_forward.register_fake
def _(query, key, value, kernel_size, normalization, temperature, border, backend='auto'):
    return empty_map(value, value.shape[1], query.shape[2:])


@operator(
    'point_affiliation_backward',
    '(Tensor grad, Tensor query, Tensor key, Tensor value, SymInt kernel_size, str normalization, '
    'float temperature, str border, bool[] needs, str backend="auto") -> (Tensor, Tensor, Tensor)',
)
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    needs: Sequence[bool],
    backend: str = 'auto',
) -> tuple[Tensor, ...]:
    grads = empty_gradients((query, key, value), needs)
    wanted = [x if need else None for x, need in zip(grads, needs, strict=True)]
    options = (kernel_size, normalization, temperature, border, NORMALIZATION_EPS)
    run = implementation(_BACKWARD, backend, query, value, kernel_size)
    run.backward(grad, query, key, value, *wanted, *options)
    return grads


@_backward.register_fake
def _(
    grad, query, key, value, kernel_size, normalization, temperature, border, needs, backend='auto'
):
    return empty_gradients((query, key, value), needs)


def _setup_context(ctx, inputs, output):
    query, key, value, *ctx.options, ctx.backend = inputs
    ctx.save_for_backward(query, key, value)


def _autograd(ctx, grad):
    needs = list(ctx.needs_input_grad[:3])
    grads = _backward(grad, *ctx.saved_tensors, *ctx.options, needs, ctx.backend)
    return *given_gradients(grads, needs), *[None] * 5


_forward.register_autograd(_autograd, setup_context=_setup_context)
