"""Embedding: LayerNorm over channels and a projection, with a gate, in one pass over a map.

A program owns some pixels, numbered row by row, and holds all their channels where these are no
more than a block; so the map is read once, in whatever layout it lies, and neither its LayerNorm
nor the embedding before the gate ever is in memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from .embedding_plan import FORWARD, UNSPECIALIZED, contiguous, start
from .flat import flat, flat_rows
from .window import dot, load_rows, store_rows


@triton.jit
def flat_parents(index, high_y, high_x, cells_y, cells_x):
    """Find the parents of pixels, all numbered row by row; of those that are not there any cell."""
    row = tl.minimum(index // high_x, high_y - 1)
    return (row * cells_y // high_y) * cells_x + index % high_x * cells_x // high_x


@triton.jit
def load_vector(ptr, start, length, BLOCK: tl.constexpr):
    """Read BLOCK of ``length`` parameters from ``start`` as float32; 0 where none is."""
    place = start + tl.arange(0, BLOCK)
    return tl.load(ptr + place, mask=place < length, other=0.0).to(tl.float32)


@triton.jit
def load_matrix(ptr, row, rows, column, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Read a block of a matrix (rows, columns) from ``row`` and ``column``; 0 where nothing is."""
    r, c = row + tl.arange(0, BLOCK_R), column + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None] & (c < columns)[None, :]
    return tl.load(ptr + r[:, None] * columns + c[None, :], mask=mask, other=0.0)


@triton.jit
def moments(block, start, channels, BLOCK_C: tl.constexpr):
    """Compute how many of ``channels`` are in a block, their mean, and the sum of squares about it.

    Args:
        block: (P, BLOCK_C), channels from ``start``.
        start: The first channel.
        channels: Channels that there are.
        BLOCK_C: Those of a block.
    """
    wide = block.to(tl.float32)
    count = tl.minimum(channels - start, BLOCK_C).to(tl.float32)
    mean = tl.sum(wide, 1) / count
    there = (start + tl.arange(0, BLOCK_C) < channels)[None, :]
    rest = tl.where(there, wide - mean[:, None], 0.0)
    if block.dtype == tl.float32:
        # The first sum rounds as the mean is large, this one as the deviation is.
        mean += tl.sum(rest, 1) / count
        rest = tl.where(there, wide - mean[:, None], 0.0)
    return count, mean, tl.sum(rest * rest, 1)


@triton.jit
def all_moments(rows, channels, BLOCK_C: tl.constexpr):
    """Compute mean and sum of squares about it of `Rows`, BLOCK_C channels at a time.

    Chan et al.'s update of the two: nothing cancels where the mean is large.
    """
    seen, mean, squares = moments(load_rows(rows, 0, channels, BLOCK_C), 0, channels, BLOCK_C)
    for c in range(BLOCK_C, channels, BLOCK_C):
        block = load_rows(rows, c, channels, BLOCK_C)
        count, block_mean, block_squares = moments(block, c, channels, BLOCK_C)
        step = block_mean - mean
        total = seen + count
        mean += step * (count / total)
        squares += block_squares + step * step * (seen * count / total)
        seen = total
    return mean, squares


@triton.jit
def load_affine(norm_weight_ptr, norm_bias_ptr, start, channels, BLOCK_C: tl.constexpr):
    """Read a LayerNorm's weight and bias from channel ``start`` on, 1 and 0 if there are none."""
    gamma = tl.full((BLOCK_C,), 1.0, tl.float32)
    beta = tl.zeros((BLOCK_C,), tl.float32)
    if norm_weight_ptr is not None:
        gamma = load_vector(norm_weight_ptr, start, channels, BLOCK_C)
    if norm_bias_ptr is not None:
        beta = load_vector(norm_bias_ptr, start, channels, BLOCK_C)
    return gamma, beta


@triton.jit
def gate_of(gate, image, cells, inside):
    """Read the gates sigmoid(z) of pixels at their parents, (P,) in float32."""
    rows = flat_rows(gate, image, cells, inside)
    logits = tl.load(rows.ptr + rows.offsets, mask=inside, other=0.0).to(tl.float32)
    return 1.0 / (1.0 + tl.exp(-logits))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_fwd_kernel(
    x,
    weight_ptr,
    bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    gate,
    addend,
    out,
    statistics_ptr,
    images,
    channels,
    embed,
    high_y,
    high_x,
    cells_y,
    cells_x,
    tiles,
    eps,
    ONE_BLOCK: tl.constexpr,
    ONE_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Out = LN(x) W^T + b, or with g = sigmoid(gate) and s = addend g (LN(x) W^T + b) + (1 - g) s.

    x (N, C, H, W), out (N, D, H, W), gate (N, 1, h, w) and addend (N, D, h, w) are `Strided`, and
    the latter two, like the parameters, may be None; the weight is (D, C), contiguous. Pixels take
    gate and addend of their parents. statistics (2, N, H, W), contiguous, receives the mean of each
    pixel and its reciprocal deviation. One program owns some of the N * tiles blocks of BLOCK_P
    pixels, every so many-th.
    """
    dtype: tl.constexpr = x.ptr.dtype.element_ty
    PROJECT: tl.constexpr = weight_ptr is not None
    NORMALIZE: tl.constexpr = statistics_ptr is not None
    if not PROJECT and ONE_BLOCK:
        gamma, beta = load_affine(norm_weight_ptr, norm_bias_ptr, 0, channels, BLOCK_C)
    if PROJECT and ONE_D and ONE_BLOCK:
        w, w_sums, shift = fold(
            weight_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, 0, embed, 0, channels, dtype,
            BLOCK_D, BLOCK_C,
        )  # fmt: skip
    # All programs of a processor read the parameters once, and then pixels.
    for number in range(tl.program_id(0), images * tiles, tl.num_programs(0)):
        image = (number // tiles).to(tl.int64)
        index = number % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = index < high_y * high_x
        rows, out_rows = (
            flat_rows(x, image, index, inside, WIDE),
            flat_rows(out, image, index, inside, WIDE),
        )
        mean = tl.zeros((BLOCK_P,), tl.float32)
        reciprocal = tl.full((BLOCK_P,), 1.0, tl.float32)
        if ONE_BLOCK:
            block = load_rows(rows, 0, channels, BLOCK_C)
        if NORMALIZE:
            if ONE_BLOCK:
                _, mean, squares = moments(block, 0, channels, BLOCK_C)
            else:
                mean, squares = all_moments(rows, channels, BLOCK_C)
            reciprocal = 1.0 / tl.sqrt(squares / channels + eps)
            pixel = image * (high_y * high_x) + index
            tl.store(statistics_ptr + pixel, mean, mask=inside)
            half = images.to(tl.int64) * (high_y * high_x)
            tl.store(statistics_ptr + half + pixel, reciprocal, mask=inside)
        if not PROJECT:
            for c in range(0, 1 if ONE_BLOCK else channels, BLOCK_C):
                if not ONE_BLOCK:
                    block = load_rows(rows, c, channels, BLOCK_C)
                    gamma, beta = load_affine(norm_weight_ptr, norm_bias_ptr, c, channels, BLOCK_C)
                values = (block.to(tl.float32) - mean[:, None]) * reciprocal[:, None]
                values = values * gamma[None, :] + beta[None, :]
                values = mix(values, gate, addend, image, index, inside, c, channels, high_y,
                             high_x, cells_y, cells_x, BLOCK_C)  # fmt: skip
                store_rows(out_rows, c, channels, values, BLOCK_C)
        else:
            for d in range(0, 1 if ONE_D else embed, BLOCK_D):
                values = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
                # What is left of the mean in the operands, and is made up for behind the product.
                rest = tl.zeros((BLOCK_P,), tl.float32)
                if ONE_BLOCK:
                    if not ONE_D:
                        w, w_sums, shift = fold(
                            weight_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, d, embed, 0,
                            channels, dtype, BLOCK_D, BLOCK_C,
                        )  # fmt: skip
                    operand, rest = centred(block, mean, 0, channels, BLOCK_C)
                    values = dot(operand, tl.trans(w), values, PRECISION)
                else:
                    w_sums = tl.zeros((BLOCK_D,), tl.float32)
                    shift = tl.zeros((BLOCK_D,), tl.float32)
                    for c in range(0, channels, BLOCK_C):
                        more = load_rows(rows, c, channels, BLOCK_C)
                        w, more_sums, more_shift = fold(
                            weight_ptr, None, norm_weight_ptr, norm_bias_ptr, d, embed, c,
                            channels, dtype, BLOCK_D, BLOCK_C,
                        )  # fmt: skip
                        operand, more_rest = centred(more, mean, c, channels, BLOCK_C)
                        values = dot(operand, tl.trans(w), values, PRECISION)
                        rest += more_rest
                        w_sums += more_sums
                        shift += more_shift
                    if bias_ptr is not None:
                        shift += load_vector(bias_ptr, d, embed, BLOCK_D)
                if NORMALIZE:
                    rest = rest / channels if dtype == tl.float32 else mean
                    values -= rest[:, None] * w_sums[None, :]
                values = values * reciprocal[:, None] + shift[None, :]
                values = mix(values, gate, addend, image, index, inside, d, embed, high_y,
                             high_x, cells_y, cells_x, BLOCK_D)  # fmt: skip
                store_rows(out_rows, d, embed, values, BLOCK_D)


@triton.jit
def centred(block, mean, start, channels, BLOCK_C: tl.constexpr):
    """Subtract the means of the rows where sums could not bear it to be done later.

    Products of 16 bits are exact in float32, and sums of few of them nearly so: there the mean is
    made up for behind the product, and the block may go to the matrix units as it comes.

    Returns:
        The block (P, BLOCK_C), channels from ``start``, and in float32 the sums (P,) of what is
        left: a mean is rounded.
    """
    rest = tl.zeros((block.shape[0],), tl.float32)
    if block.dtype == tl.float32:
        block = block - mean[:, None]
        there = (start + tl.arange(0, BLOCK_C) < channels)[None, :]
        rest = tl.sum(tl.where(there, block, 0.0), 1)
    return block, rest


@triton.jit
def fold(
    weight_ptr,
    bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    d,
    embed,
    c,
    channels,
    dtype: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Fold the affine part of the LayerNorm into a block of the projection.

    Returns:
        W gamma (BLOCK_D, BLOCK_C) in ``dtype``, the sums of its rows (BLOCK_D,) as it is rounded,
        and what is added (BLOCK_D,): W beta and the bias.
    """
    w = load_matrix(weight_ptr, d, embed, c, channels, BLOCK_D, BLOCK_C).to(tl.float32)
    shift = tl.zeros((BLOCK_D,), tl.float32)
    if norm_bias_ptr is not None:
        shift += tl.sum(w * load_vector(norm_bias_ptr, c, channels, BLOCK_C)[None, :], 1)
    if bias_ptr is not None:
        shift += load_vector(bias_ptr, d, embed, BLOCK_D)
    if norm_weight_ptr is not None:
        w *= load_vector(norm_weight_ptr, c, channels, BLOCK_C)[None, :]
    rounded = w.to(dtype)
    return rounded, tl.sum(rounded.to(tl.float32), 1), shift


@triton.jit
def mix(
    values,
    gate,
    addend,
    image,
    index,
    inside,
    start,
    embed,
    high_y,
    high_x,
    cells_y,
    cells_x,
    BLOCK_D: tl.constexpr,
):
    """Mix an embedding with the addend of the pixels' parents by the gate, as far as there are any.

    Args:
        values: (P, BLOCK_D), channels from ``start`` of ``embed``.
        gate: `Strided` (N, 1, h, w), or None.
        addend: `Strided` (N, D, h, w), or None.
        image: The number of the image.
        index: (P,), numbers of the pixels.
        inside: (P,), whether there are such ones.
        start: The first channel.
        embed: Channels that there are.
        high_y: Rows of pixels.
        high_x: Columns of pixels.
        cells_y: Rows of cells.
        cells_x: Columns of cells.
        BLOCK_D: Channels of a block.
    """
    if addend is not None:
        cells = flat_parents(index, high_y, high_x, cells_y, cells_x)
        more = load_rows(flat_rows(addend, image, cells, inside), start, embed, BLOCK_D)
        more = more.to(tl.float32)
        if gate is None:
            values += more
        else:
            g = gate_of(gate, image, cells, inside)[:, None]
            values = g * values + (1.0 - g) * more
    return values


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gate: Tensor | None,
    addend: Tensor | None,
    out: Tensor,
    statistics: Tensor | None,
    eps: float,
) -> None:
    """Write the embedding of ``x``.

    Args:
        x: (N, C, H, W), float16, bfloat16 or float32, any strides.
        weight: (D, C), of that dtype or float32. Without one nothing is projected.
        bias: (D,), likewise, or None.
        norm_weight: (C,), of the LayerNorm, likewise.
        norm_bias: (C,), likewise.
        gate: (N, 1, h, w), logits, in the dtype of ``x``, or None.
        addend: (N, D, h, w), likewise.
        out: (N, D, H, W), written to.
        statistics: (2, N, H, W), float32, contiguous, written to: the pixels' means and reciprocal
            deviations. With None there is no LayerNorm.
        eps: Its addend to the variance.
    """
    start(
        embedding_fwd_kernel,
        FORWARD,
        x,
        out.shape[1],
        addend,
        tensors=dict(x=flat(x), gate=flat(gate), addend=flat(addend), out=out),
        pointers=dict(
            weight_ptr=contiguous(weight),
            bias_ptr=contiguous(bias),
            norm_weight_ptr=contiguous(norm_weight),
            norm_bias_ptr=contiguous(norm_bias),
            statistics_ptr=statistics,
        ),
        scalars=dict(eps=eps),
    )
