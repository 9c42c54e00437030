"""Point affiliation: similarity, normalization and assembly in one pass, and its gradient.

The forward keeps scores and weights in registers. The backward computes them again, a tile of
pixels at a time, writes the gradient of the query, and leaves the weights and the gradient of the
scores, K * K values a pixel, to two assemblies backward: one for the value, one for the key.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import assembly, tuning
from .launch import launch
from .normalization import normalize, normalize_bwd
from .window import (
    UNSPECIALIZED,
    Sizes,
    advance,
    correlate,
    fit,
    gather,
    locate,
    rows_of,
    tile_windows,
)


@triton.jit
def affiliate(
    query_rows,
    key_rows,
    in_window,
    embed,
    inverse_temperature,
    eps,
    NORMALIZATION: tl.constexpr,
    BORDER: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the scores of a tile, which of them take part, and what `normalize` makes of them.

    Args:
        query_rows: M `Rows` of queries.
        key_rows: N `Rows` of keys.
        in_window: (M, N), whether the key lies in the query's window.
        embed: D, channels of both.
        inverse_temperature: 1 / T, by which the inner products are multiplied.
        eps: As `normalize` has it.
        NORMALIZATION: Likewise.
        BORDER: With 'mask' keys outside the image do not take part.
        BLOCK_D: How many channels are multiplied at a time.
        PRECISION: As `dot` has it.

    Returns:
        Scores (M, N), whether they take part, their weights, and the reciprocals (M,) of what the
        weights were divided by.
    """
    scores = correlate(query_rows, key_rows, embed, BLOCK_D, PRECISION)
    scores *= inverse_temperature
    counted = in_window
    if BORDER == 'mask':
        counted &= key_rows.inside[None, :]
    weights, reciprocal = normalize(scores, counted, eps, NORMALIZATION)
    return scores, counted, weights, reciprocal


@triton.jit(do_not_specialize=UNSPECIALIZED)
def affiliation_fwd_kernel(
    query,
    key,
    value,
    out,
    embed,
    channels,
    cells_y,
    cells_x,
    high_y,
    high_x,
    tiles_y,
    tiles_x,
    share,
    splits,
    inverse_temperature,
    eps,
    tile,
    NORMALIZATION: tl.constexpr,
    BORDER: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[l'] = sum_p w[l', p] value[l + p], w = normalize(<query[l'], key[l + p]> / T).

    query (N, D, Hg, Wg), key (N, D, H, W), value (N, C, H, W) and out (N, C, Hg, Wg) are `Strided`,
    ``tile`` is the `Tile`; D is ``embed``, C ``channels``. One program owns ``share`` channels of a
    tile of cells of one image. The grid is (N * tiles_y * tiles_x * splits,).
    """
    image, tile_y, tile_x, split = locate(splits, tiles_y, tiles_x)
    image = image.to(tl.int64)
    query, key = advance(query, image, 0), advance(key, image, 0)
    value, out = advance(value, image, 0), advance(out, image, 0)

    sizes = Sizes(cells_y, cells_x, high_y, high_x)
    windows = tile_windows(tile_y, tile_x, sizes, tile, BORDER)
    pixels, cells = windows.pixels, windows.cells
    _, _, weights, _ = affiliate(
        rows_of(query, pixels),
        rows_of(key, cells),
        windows.inside,
        embed,
        inverse_temperature,
        eps,
        NORMALIZATION,
        BORDER,
        BLOCK_D,
        PRECISION,
    )
    weights, scale = fit(weights, value.ptr.dtype.element_ty, SCALED)
    gather(
        weights,
        scale,
        rows_of(value, cells),
        rows_of(out, pixels),
        split * share,
        tl.minimum(split * share + share, channels),
        channels,
        BLOCK_C,
        PRECISION,
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def affiliation_bwd_kernel(
    grad,
    query,
    key,
    value,
    grad_query,
    weights_ptr,
    grad_scores_ptr,
    weights_scale_ptr,
    grad_scores_scale_ptr,
    embed,
    channels,
    cells_y,
    cells_x,
    high_y,
    high_x,
    tiles_y,
    tiles_x,
    inverse_temperature,
    eps,
    tile,
    NORMALIZATION: tl.constexpr,
    BORDER: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the gradient of the query, and what those of key and value are assembled from.

    grad (N, C, Hg, Wg), query and grad_query (N, D, Hg, Wg), key (N, D, H, W) and value
    (N, C, H, W) are `Strided`, ``tile`` is the `Tile`. weights and grad_scores (N, Hg, Wg, K K),
    contiguous, receive the weights and the gradient of the inner products; with SCALED each pixel's
    divided by its entry in grad_scores_scale (N, Hg, Wg) and, without a normalization, in
    weights_scale. One program owns a tile of cells of one image. The grid is
    (N * tiles_y * tiles_x,).
    """
    image, tile_y, tile_x, _ = locate(1, tiles_y, tiles_x)
    image = image.to(tl.int64)
    grad, query = advance(grad, image, 0), advance(query, image, 0)
    key, value = advance(key, image, 0), advance(value, image, 0)
    grad_query = advance(grad_query, image, 0)

    sizes = Sizes(cells_y, cells_x, high_y, high_x)
    windows = tile_windows(tile_y, tile_x, sizes, tile, BORDER)
    pixels, cells = windows.pixels, windows.cells
    query_rows, key_rows = rows_of(query, pixels), rows_of(key, cells)
    scores, counted, weights, reciprocal = affiliate(
        query_rows,
        key_rows,
        windows.inside,
        embed,
        inverse_temperature,
        eps,
        NORMALIZATION,
        BORDER,
        BLOCK_D,
        PRECISION,
    )
    grad_weights = correlate(
        rows_of(grad, pixels), rows_of(value, cells), channels, BLOCK_C, PRECISION
    )
    grad_scores = normalize_bwd(grad_weights, scores, weights, reciprocal, counted, NORMALIZATION)
    grad_scores *= inverse_temperature

    dtype: tl.constexpr = value.ptr.dtype.element_ty
    # Other normalizations keep the weights between 0 and 1.
    WEIGHTS_SCALED: tl.constexpr = SCALED and NORMALIZATION == 'none'
    weights, weights_scale = fit(weights, dtype, WEIGHTS_SCALED)
    grad_scores, grad_scores_scale = fit(grad_scores, dtype, SCALED)
    pixel = (image * high_y + pixels.y) * high_x + pixels.x
    compact = pixel[:, None] * (tile.kernel_size * tile.kernel_size) + windows.position
    mask = windows.inside & pixels.inside[:, None]
    tl.store(weights_ptr + compact, weights, mask=mask)
    tl.store(grad_scores_ptr + compact, grad_scores, mask=mask)
    if WEIGHTS_SCALED:
        tl.store(weights_scale_ptr + pixel, weights_scale, mask=pixels.inside)
    if SCALED:
        tl.store(grad_scores_scale_ptr + pixel, grad_scores_scale, mask=pixels.inside)
    gather(
        grad_scores,
        grad_scores_scale,
        key_rows,
        rows_of(grad_query, pixels),
        0,
        embed,
        embed,
        BLOCK_D,
        PRECISION,
    )


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
        query: (N, D, Hg, Wg), float16, bfloat16 or float32, any strides.
        key: (N, D, H, W), likewise.
        value: (N, C, H, W), likewise.
        out: (N, C, Hg, Wg), written to.
        kernel_size: K.
        normalization: 'softmax', 'sigmoid', 'relu', 'softplus' or 'none'.
        temperature: T, by which the inner products are divided.
        border: 'zero', 'mask' or 'replicate'.
        eps: Added to the sum that the three in the middle divide by.
    """
    # Weights without a bound may leave the range of float16.
    scaled = normalization == 'none' and value.dtype == torch.float16
    launch(
        affiliation_fwd_kernel,
        tuning.FORWARD,
        query,
        value,
        kernel_size=kernel_size,
        channels=value.shape[1],
        embed=key.shape[1],
        tensors=dict(query=query, key=key, value=value, out=out),
        scalars=dict(inverse_temperature=1.0 / temperature, eps=eps),
        constants=dict(NORMALIZATION=normalization, BORDER=border, SCALED=scaled),
    )


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    eps: float,
) -> None:
    """Write the gradients of query, key and value; the same bits at every run of one tile size.

    Args:
        grad: Gradient of the result (N, C, Hg, Wg), any strides.
        query: As `forward` had it.
        key: Likewise.
        value: Likewise.
        grad_query: Written to, like ``query``.
        grad_key: Likewise.
        grad_value: Likewise.
        kernel_size: As `forward` had it.
        normalization: Likewise.
        temperature: Likewise.
        border: Likewise.
        eps: Likewise.
    """
    n, _, high_y, high_x = query.shape
    weights, grad_scores = (query.new_empty(n, high_y, high_x, kernel_size**2) for _ in range(2))
    # A gradient knows no range: in float16 each pixel's is stored with a factor of its own.
    scaled = value.dtype == torch.float16
    weights_scale = grad_scores_scale = None
    if scaled:
        grad_scores_scale = query.new_empty(n, 1, high_y, high_x, dtype=torch.float32)
    if scaled and normalization == 'none':
        weights_scale = torch.empty_like(grad_scores_scale)
    launch(
        affiliation_bwd_kernel,
        tuning.BACKWARD,
        query,
        value,
        kernel_size=kernel_size,
        channels=value.shape[1],
        embed=key.shape[1],
        tensors=dict(grad=grad, query=query, key=key, value=value, grad_query=grad_query),
        pointers=dict(
            weights_ptr=weights,
            grad_scores_ptr=grad_scores,
            weights_scale_ptr=weights_scale,
            grad_scores_scale_ptr=grad_scores_scale,
        ),
        scalars=dict(inverse_temperature=1.0 / temperature, eps=eps),
        constants=dict(NORMALIZATION=normalization, BORDER=border, SCALED=scaled),
    )
    weights, grad_scores = weights.movedim(3, 1), grad_scores.movedim(3, 1)
    replicate = border == 'replicate'
    assembly.backward(
        weights, grad, grad_value, kernel_size, scale=weights_scale, replicate=replicate
    )
    assembly.backward(
        grad_scores, query, grad_key, kernel_size, scale=grad_scores_scale, replicate=replicate
    )
