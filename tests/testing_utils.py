"""What the tests share: tolerances, inputs, and the comparison with the float64 reference."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

#: Allowed max|error| / max|reference|, forward and gradients alike; beside it the worst seen on a
#: CPU (operators, and modules whose projections round as well).
TOLERANCES = {
    torch.float64: 1e-12,  # 9.1e-14
    torch.float32: 5e-6,  # 1.4e-6
    torch.float16: 2e-3,  # 7.2e-4
    torch.bfloat16: 2e-2,  # 6.4e-3
}

DTYPES = tuple(TOLERANCES)
#: float64 goes to the PyTorch backend by rule.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NORMALIZATIONS = ('softmax', 'sigmoid', 'relu', 'softplus', 'none')
BORDERS = ('zero', 'mask', 'replicate')
LAYOUTS = ('contiguous', 'channels_last', 'sliced', 'transposed', 'expanded')


class Sizes(NamedTuple):
    """Sizes of one call: batch, embedding and value channels, (H, W) and (Hg, Wg)."""

    n: int
    d: int
    c: int
    low: tuple[int, int]
    high: tuple[int, int]

    def __str__(self) -> str:
        low, high = ('x'.join(map(str, size)) for size in (self.low, self.high))
        return f'n{self.n}-d{self.d}-c{self.c}-{low}-{high}'


#: Every ratio, odd and non-integer sizes, maps smaller than the window, D above and below C.
SIZES = (
    Sizes(2, 8, 5, (7, 9), (7, 9)),
    Sizes(2, 6, 11, (5, 8), (10, 16)),
    Sizes(1, 4, 3, (4, 5), (12, 15)),
    Sizes(2, 3, 4, (3, 4), (12, 16)),
    Sizes(1, 8, 6, (17, 23), (33, 45)),
    Sizes(2, 5, 3, (20, 13), (50, 31)),
    Sizes(1, 4, 7, (8, 9), (9, 10)),
    # 14 -> 46 is one of the sizes where F.interpolate's float32 parents are off by one.
    Sizes(1, 3, 4, (14, 4), (46, 7)),
    Sizes(1, 6, 9, (3, 2), (6, 4)),
    Sizes(2, 4, 3, (1, 1), (3, 2)),
)

#: All sizes differ, as torch.compile takes equal ones for one and the same.
COMPILED_SIZES = (Sizes(2, 6, 5, (7, 8), (14, 17)), Sizes(3, 6, 5, (10, 11), (20, 23)))


def make_tensor(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    layout: str = 'contiguous',
    scale: float = 1.0,
    mean: float = 0.0,
    device: str = 'cpu',
) -> Tensor:
    """A normally distributed tensor (N, C, H, W) that lies in memory as ``layout`` says.

    ``scale`` multiplies all of it, the ``mean`` included.

    The memory around a 'sliced' one is NaN, so that a read outside of it shows.
    """
    n, c, h, w = shape
    if layout == 'expanded':
        shape = (1, c, 1, w)
    # Drawn in float64, so that one seed gives one input whatever the dtype.
    data = scale * (torch.randn(shape, dtype=torch.float64) + mean)
    data = data.to(device=device, dtype=dtype)
    if layout == 'contiguous':
        return data
    if layout == 'channels_last':
        return data.contiguous(memory_format=torch.channels_last)
    if layout == 'transposed':
        return data.mT.contiguous().mT
    if layout == 'expanded':
        return data.expand(n, c, h, w)
    if layout == 'sliced':
        base = data.new_full((n + 1, c + 2, h + 3, 2 * w + 2), torch.nan)
        part = base[1:, 1:-1, 2:-1, 1:-1:2]
        part.copy_(data)
        return part
    raise ValueError(f'unknown layout {layout!r}')


def affiliation_inputs(sizes: Sizes, **kwargs) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value whose scores are of unit size."""
    scale = sizes.d**-0.25
    return (
        make_tensor(sizes.n, sizes.d, *sizes.high, scale=scale, **kwargs),
        make_tensor(sizes.n, sizes.d, *sizes.low, scale=scale, **kwargs),
        make_tensor(sizes.n, sizes.c, *sizes.low, **kwargs),
    )


def assembly_inputs(
    sizes: Sizes, kernel_size: int, groups: int = 1, **kwargs
) -> tuple[Tensor, Tensor]:
    """Weights of either sign and value."""
    return (
        make_tensor(sizes.n, groups * kernel_size**2, *sizes.high, **kwargs),
        make_tensor(sizes.n, sizes.c, *sizes.low, **kwargs),
    )


def forward_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, **kwargs
) -> tuple[Tensor, ...]:
    """The result of ``function(*inputs, **kwargs)`` and its gradient to every input.

    ``grad`` is the gradient of the result and is cast to its dtype. torch.autograd.grad is used
    because ``.grad`` would be copied into the layout of its leaf.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves, **kwargs)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def _regions(size: Sequence[int], margin: Sequence[int]) -> dict[str, tuple[slice, slice]]:
    """Slices of the interior and of the four border strips of an (h, w) map."""
    (h, w), (my, mx) = size, margin
    everything = slice(None)
    regions = {'interior': (slice(my, h - my), slice(mx, w - mx))}
    if my:
        regions |= {
            'top rows': (slice(0, my), everything),
            'bottom rows': (slice(max(h - my, 0), h), everything),
        }
    if mx:
        regions |= {
            'left columns': (everything, slice(0, mx)),
            'right columns': (everything, slice(max(w - mx, 0), w)),
        }
    return regions


def assert_close_to_reference(
    actual: Tensor,
    reference: Tensor,
    *,
    margin: Sequence[int] = (0, 0),
    tolerance: float | None = None,
    floor: float = 0.0,
    what: str = 'output',
) -> None:
    """Compare the interior and each border strip with the float64 reference.

    Each region is held to its own norm: an error confined to the border would drown in a global
    one.

    Args:
        actual: What is tested (N, C, h, w).
        reference: What it should be.
        margin: Rows and columns of the border strips.
        tolerance: Allowed max|error| / max|reference| of a region. Default: the table's entry for
            the dtype of ``actual``.
        floor: Least value to divide by, for a reference that cancels to about zero.
        what: Name of the tensor for the message.
    """
    assert actual.shape == reference.shape, f'{what}: {actual.shape} != {reference.shape}'
    tolerance = TOLERANCES[actual.dtype] if tolerance is None else tolerance
    actual, reference = actual.double().cpu(), reference.double().cpu()
    assert actual.isfinite().all(), f'{what} is not finite'
    for name, (rows, cols) in _regions(actual.shape[-2:], margin).items():
        expected = reference[..., rows, cols]
        if expected.numel() == 0:
            continue
        error = (actual[..., rows, cols] - expected).abs().max().item()
        scale = max(expected.abs().max().item(), floor)
        assert error <= tolerance * scale, (
            f'{what}, {name}: max|error| {error:.2e} of max|reference| {scale:.2e}, '
            f'more than {tolerance:.0e} of it'
        )


def border_margin(size: Sequence[int], low: Sequence[int], kernel_size: int) -> tuple[int, int]:
    """Rows and columns of an output of ``size`` whose window may leave the ``low`` map."""
    radius = kernel_size // 2
    return tuple(math.ceil(radius * s / x) for s, x in zip(size, low, strict=True))


def check_against_reference(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    names: Sequence[str],
    *,
    floor: float = 0.0,
    grad_layout: str = 'contiguous',
    grad_scale: float = 1.0,
    **kwargs,
) -> None:
    """Hold the result and every gradient of ``function`` to those of ``reference`` in float64.

    Args:
        function: The op.
        reference: Its reference, which is given the same numbers in float64 on the CPU.
        inputs: Tensors in the order of the op's arguments; the first has the size of the output,
            the second that of the low resolution.
        names: Names of the inputs, for the message.
        floor: See :func:`assert_close_to_reference`.
        grad_layout: How the gradient of the result lies in memory, see :func:`make_tensor`.
        grad_scale: Size of that gradient.
        **kwargs: Keyword arguments of both.
    """
    exact_inputs = [tensor.detach().double().cpu().contiguous() for tensor in inputs]
    with torch.no_grad():
        shape = reference(*exact_inputs, **kwargs).shape
    # Rounded to the dtype of the inputs, so that both see the same numbers.
    grad = make_tensor(
        *shape,
        dtype=inputs[0].dtype,
        layout=grad_layout,
        scale=grad_scale,
        device=inputs[0].device,
    )
    actual = forward_and_gradients(function, inputs, grad, **kwargs)
    expected = forward_and_gradients(reference, exact_inputs, grad.double().cpu(), **kwargs)
    low = inputs[1].shape[-2:]
    labels = ['output', *(f'gradient of {name}' for name in names)]
    for what, got, exact in zip(labels, actual, expected, strict=True):
        assert got.dtype == inputs[0].dtype, f'{what} is {got.dtype}'
        margin = border_margin(got.shape[-2:], low, kwargs['kernel_size'])
        assert_close_to_reference(got, exact, margin=margin, floor=floor, what=what)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
