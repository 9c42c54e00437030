"""Here PyTorch's own operators make up the window operators, for programs that leave PyTorch.

An exported program holds this package's operators as `torch.ops.sapa_mm.*`, which no other runtime
knows. `decompositions` says what takes their place. Sizes may be symbols: nothing here depends on
their values, so one program serves all of them. It is as exact as the operators and slower, and
keeps K values a pixel and channel at a time, those of one row of the window.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .affiliation import _forward as point_affiliation
from .assembly import _forward as assemble
from .embedding import _forward as embed
from .layout import accumulation_dtype, embedding_format, in_format_of
from .normalization import normalize
from .parents import parents, upsample_parent
from .similarity import _forward as local_similarity


class _Windows:
    """This gathers the windows of all high-resolution pixels, row by row of the window.

    Args:
        high: A high-resolution map (N, *, Hg, Wg).
        low: A low-resolution map (N, *, H, W).
        kernel_size: K.
        border: 'zero', 'mask' or 'replicate'.
    """

    def __init__(self, high: Tensor, low: Tensor, kernel_size: int, border: str = 'zero'):
        self.high_size = high.shape[2:]
        self.size = low.shape[2:]
        self.kernel_size = kernel_size
        self.border = border
        rows, columns = (
            parents(h, n, low.device) for h, n in zip(self.high_size, self.size, strict=True)
        )
        # In a map with K // 2 pixels around it the parents' places are the windows' corners.
        width = self.size[1] + kernel_size // 2 * 2
        corners = (rows[:, None] * width + columns).flatten()
        first = (corners[:, None] + torch.arange(kernel_size, device=low.device)).flatten()
        self.rows = [first + y * width if y else first for y in range(kernel_size)]

    def __call__(self, x: Tensor) -> Iterator[Tensor]:
        """Gather a map (N, C, H, W): for each row of the window (N, Hg*Wg, K, C)."""
        x = x.to(accumulation_dtype(x.dtype))
        if self.kernel_size > 1:
            mode = 'replicate' if self.border == 'replicate' else 'constant'
            x = F.pad(x, [self.kernel_size // 2] * 4, mode)
        pixels = x.flatten(2).transpose(1, 2).contiguous()
        for row in self.rows:
            yield pixels.index_select(1, row).unflatten(1, (-1, self.kernel_size))

    def valid(self) -> Tensor | None:
        """Return which positions the normalization counts: bool (1, Hg*Wg, K, K); None for all."""
        if self.border != 'mask':
            return None
        ones = torch.ones(1, 1, *self.size, device=self.rows[0].device)
        return torch.cat([row.transpose(2, 3) for row in self(ones)], 2) > 0

    def scores(self, query: Tensor, key: Tensor, temperature: float) -> Tensor:
        """Multiply query (N, D, Hg, Wg) with key (N, D, H, W): (N, Hg*Wg, K*K) inner products."""
        query = _pixels(query).unsqueeze(2)
        scores = torch.cat([(query * row).sum(-1) for row in self(key)], -1)
        return scores if temperature == 1 else scores / temperature

    def assemble(self, weights: Tensor, value: Tensor, groups: int = 1) -> Tensor:
        """Compute the weighted sums of value (N, C, H, W).

        Args:
            weights: (N, Hg*Wg, G*K*K).
            value: (N, C, H, W).
            groups: G.

        Returns:
            (N, C, Hg, Wg) in the dtype and memory format of ``value``.
        """
        if groups == 1:
            pairs = zip(weights.split(self.kernel_size, -1), self(value), strict=True)
            sums = [(w.unsqueeze(-1) * row).sum(2) for w, row in pairs]
        else:
            rows = weights.unflatten(-1, (groups, -1)).transpose(2, 3).split(self.kernel_size, 2)
            pairs = zip(rows, self(value), strict=True)
            sums = [
                (w.unsqueeze(-1) * row.unflatten(-1, (groups, -1))).sum(2).flatten(2)
                for w, row in pairs
            ]
        return _as_map(functools.reduce(torch.add, sums), self.high_size, value)


def _pixels(x: Tensor) -> Tensor:
    """Turn (N, C, Hg, Wg) into (N, Hg*Wg, C) in the accumulation dtype."""
    return x.to(accumulation_dtype(x.dtype)).flatten(2).transpose(1, 2)


def _as_map(pixels: Tensor, size: Sequence[int], like: Tensor) -> Tensor:
    """Turn (N, Hg*Wg, C) into (N, C, Hg, Wg) in the dtype and memory format of ``like``."""
    return in_format_of(like, pixels.to(like.dtype).transpose(1, 2).unflatten(2, size))


def _point_affiliation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    backend: str = 'auto',
) -> Tensor:
    windows = _Windows(query, value, kernel_size, border)
    scores = windows.scores(query, key, temperature).unflatten(-1, (kernel_size, kernel_size))
    weights = normalize(scores, normalization, windows.valid())
    return windows.assemble(weights.flatten(-2), value)


def _local_similarity(
    query: Tensor, key: Tensor, kernel_size: int, temperature: float, backend: str = 'auto'
) -> Tensor:
    windows = _Windows(query, key, kernel_size)
    return _as_map(windows.scores(query, key, temperature), windows.high_size, query)


def _assemble(
    weights: Tensor, value: Tensor, kernel_size: int, groups: int = 1, backend: str = 'auto'
) -> Tensor:
    windows = _Windows(weights, value, kernel_size)
    return windows.assemble(_pixels(weights), value, groups)


def _embed(
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
    dtype = accumulation_dtype(x.dtype)
    weight, bias, norm_weight, norm_bias = (
        None if parameter is None else parameter.to(dtype)
        for parameter in (weight, bias, norm_weight, norm_bias)
    )
    pixels = x.to(dtype).movedim(1, -1)
    statistics = x.new_empty(0, dtype=dtype)
    if normalize:
        variance, mean = torch.var_mean(pixels, -1, correction=0)
        statistics = torch.stack([mean, (variance + eps).rsqrt()])
        pixels = F.layer_norm(pixels, pixels.shape[-1:], norm_weight, norm_bias, eps)
    if weight is not None:
        pixels = F.linear(pixels, weight, bias)
    out = pixels.movedim(-1, 1)
    if addend is not None:
        addend = upsample_parent(addend.to(dtype), x.shape[2:])
        if gate is None:
            out = out + addend
        else:
            share = upsample_parent(gate.to(dtype).sigmoid(), x.shape[2:])
            out = share * out + (1 - share) * addend
    return out.to(x.dtype).contiguous(memory_format=embedding_format(x)), statistics


def _bin_means(length: int, bins: int, like: Tensor) -> Tensor:
    """Return the matrix (bins, length) that averages adaptive pooling's bins along one axis."""
    i = torch.arange(bins, device=like.device)
    start, stop = i * length // bins, -(-(i + 1) * length // bins)
    position = torch.arange(length, device=like.device)
    inside = (position >= start[:, None]) & (position < stop[:, None])
    return inside.to(like.dtype) / (stop - start).to(like.dtype)[:, None]


def _adaptive_avg_pool2d(x: Tensor, output_size: tuple[int, int]) -> Tensor:
    rows, columns = (
        _bin_means(n, bins, x) for n, bins in zip(x.shape[-2:], output_size, strict=True)
    )
    return rows @ x @ columns.mT


def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """Return what replaces the operators in an exported program, for any sizes.

    These have a forward alone: nothing is trained after an export. Adaptive average pooling is
    among them, as PyTorch's own replacement holds for the example's sizes alone. They are meant for
    ``torch.export.ExportedProgram.run_decompositions``::

        program = torch.export.export(model.eval(), (image,), dynamic_shapes=..., strict=False)
        program = program.run_decompositions(decompositions())

    Returns:
        A dict from operator to a function of the same arguments, in PyTorch's own operators.
    """
    return {
        point_affiliation._opoverload: _point_affiliation,
        local_similarity._opoverload: _local_similarity,
        assemble._opoverload: _assemble,
        embed._opoverload: _embed,
        torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    }
