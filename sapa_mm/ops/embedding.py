"""An embedding is a normalization over channels and a projection in one operator."""

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
from .layout import accumulation_dtype, embedding_format

_IMPLEMENTATIONS = {'torch': '.strips.embedding', 'triton': '..kernels.embedding'}
_BACKWARD = _IMPLEMENTATIONS | {'triton': '..kernels.embedding_backward'}

# These inputs have a gradient, in the order in which the backward gives them.
_DIFFERENTIABLE = ('x', 'weight', 'bias', 'norm_weight', 'norm_bias', 'gate', 'addend')


def embed(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    normalize: bool = True,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    gate: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:
    r"""Normalize every pixel over its channels, project it, and mix in a low-resolution map.

    For the pixel l' of ``x`` with parent l in the low-resolution maps z (``gate``) and s
    (``addend``):

    .. math::
        a_{l'} = \gamma (x_{l'} - \mu_{l'}) / \sqrt{\sigma_{l'}^2 + \epsilon} + \beta, \qquad
        e_{l'} = W a_{l'} + b, \qquad
        o_{l'} = g_l\, e_{l'} + (1 - g_l)\, s_l, \quad g = \mathrm{sigmoid}(z)

    with the mean and the biased variance of the pixel's channels, as `torch.nn.LayerNorm` has them.
    Without z it is o = e + s, without s too o = e. These are the queries and keys of SAPA (Lu et
    al., NeurIPS 2022, equations of its section 3). The parent of pixel i is ``(i * h) // H``,
    likewise for columns.

    Sums and statistics are kept in float32 (float64 for float64). Under autocast ``x``, ``gate``
    and ``addend`` are cast to autocast's dtype, and parameters stay as they are.

    Args:
        x: (N, C, H, W), float16, bfloat16, float32 or float64, any strides.
        weight: W (D, C), of the dtype of ``x`` or float32, as all parameters. Default: a is not
            projected, so D = C.
        bias: b (D,), only with ``weight``. Default: none.
        normalize: Whether a is the above; otherwise it is x. Default: True.
        norm_weight: :math:`\gamma` (C,), only with ``normalize``. Default: 1.
        norm_bias: :math:`\beta` (C,), likewise. Default: 0.
        eps: :math:`\epsilon`. Default: 1e-5.
        gate: z (N, 1, h, w), h <= H and w <= W, dtype and device of ``x``; only with ``addend``.
            Default: none.
        addend: s (N, D, h, w), likewise. Default: none.

    Returns:
        (N, D, H, W) in the dtype of ``x``; channels last if ``x`` is that or lies on a GPU,
        otherwise contiguous.

    Raises:
        TypeError: Not tensors, a dtype that does not fit that of ``x``, ``normalize`` not a bool or
            ``eps`` not a number.
        ValueError: Shapes that do not fit each other, empty tensors, several devices, ``x``
            smaller than the low-resolution maps, ``eps`` not positive, or arguments that go with
            others that are missing: neither ``weight`` nor ``normalize``, ``bias`` without
            ``weight``, ``norm_weight`` or ``norm_bias`` without ``normalize``, ``gate`` without
            ``addend``.
    """
    x, gate, addend = autocast(x, gate, addend)
    checks.check_embedding(x, weight, bias, normalize, norm_weight, norm_bias, eps, gate, addend)
    norm = (normalize, norm_weight, norm_bias, float(eps))
    out, _ = _forward(x, weight, bias, *norm, gate, addend, requested_backend())
    return out


def _empty_results(x: Tensor, weight: Tensor | None, normalize: bool) -> tuple[Tensor, Tensor]:
    """Return an empty embedding and empty statistics (2, N, H, W), or (0,) if there are none."""
    batch, channels, *size = x.shape
    dims = channels if weight is None else weight.shape[0]
    memory_format = embedding_format(x)
    out = torch.empty(
        (batch, dims, *size), dtype=x.dtype, device=x.device, memory_format=memory_format
    )
    shape = (2, batch, *size) if normalize else (0,)
    return out, torch.empty(shape, dtype=accumulation_dtype(x.dtype), device=x.device)


@operator(
    'embed',
    '(Tensor x, Tensor? weight, Tensor? bias, bool normalize, Tensor? norm_weight, '
    'Tensor? norm_bias, float eps, Tensor? gate, Tensor? addend, str backend="auto") '
    '-> (Tensor, Tensor)',
)
def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalize: bool,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    gate: Tensor | None,
    addend: Tensor | None,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor]:
    out, statistics = _empty_results(x, weight, normalize)
    run = implementation(_IMPLEMENTATIONS, backend, x, x, 1)
    parameters = (weight, bias, norm_weight, norm_bias)
    run.forward(x, *parameters, gate, addend, out, statistics if normalize else None, eps)
    return out, statistics


@_forward.register_fake
def _(x, weight, bias, normalize, norm_weight, norm_bias, eps, gate, addend, backend='auto'):
    return _empty_results(x, weight, normalize)


@operator(
    'embed_backward',
    '(Tensor grad, Tensor x, Tensor statistics, Tensor? weight, Tensor? bias, bool normalize, '
    'Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor? gate, Tensor? addend, Tensor? out, '
    'bool[] needs, str backend="auto") '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def _backward(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalize: bool,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    gate: Tensor | None,
    addend: Tensor | None,
    out: Tensor | None,
    needs: Sequence[bool],
    backend: str = 'auto',
) -> tuple[Tensor, ...]:
    inputs = (weight, bias, norm_weight, norm_bias, gate, addend)
    grads = empty_gradients((x, *inputs), needs)
    wanted = {
        name: tensor
        for name, tensor, need in zip(_DIFFERENTIABLE, grads, needs, strict=True)
        if need
    }
    run = implementation(_BACKWARD, backend, x, x, 1)
    run.backward(grad, x, statistics if normalize else None, *inputs, out, wanted)
    return grads


@_backward.register_fake
def _(
    grad,
    x,
    statistics,
    weight,
    bias,
    normalize,
    norm_weight,
    norm_bias,
    eps,
    gate,
    addend,
    out,
    needs,
    backend='auto',
):
    return empty_gradients((x, weight, bias, norm_weight, norm_bias, gate, addend), needs)


def _setup_context(ctx, inputs, output):
    x, weight, bias, normalize, norm_weight, norm_bias, eps, gate, addend, backend = inputs
    out, statistics = output
    ctx.mark_non_differentiable(statistics)
    # The gradient of the gate is made from the result.
    out = None if gate is None else out
    ctx.save_for_backward(x, statistics, weight, bias, norm_weight, norm_bias, gate, addend, out)
    ctx.options = normalize, eps, backend


def _autograd(ctx, grad, _):
    x, statistics, weight, bias, norm_weight, norm_bias, gate, addend, out = ctx.saved_tensors
    normalize, eps, backend = ctx.options
    # Arguments that are their defaults, such as the last one, may be missing.
    needs_x, needs_weight, needs_bias, _, *needs_norm, _, needs_gate, needs_addend = (
        ctx.needs_input_grad[:9]
    )
    needs = [needs_x, needs_weight, needs_bias, *needs_norm, needs_gate, needs_addend]
    grads = _backward(
        grad,
        x,
        statistics,
        weight,
        bias,
        normalize,
        norm_weight,
        norm_bias,
        eps,
        gate,
        addend,
        out,
        needs,
        backend,
    )
    x, weight, bias, norm_weight, norm_bias, gate, addend = given_gradients(grads, needs)
    return x, weight, bias, None, norm_weight, norm_bias, None, gate, addend, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
