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
    correlate,
    fit,
    gather,
    locate,
    tile_windows,
)


@triton.jit
def affiliate(
    query_ptr,
    query_rows,
    is_query,
    query_stride_c,
    key_ptr,
    key_rows,
    is_key,
    key_stride_c,
    in_window,
    embed,
    inverse_temperature,
    eps,
    NORMALIZATION: tl.constexpr,
    BORDER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of a tile, which of them take part, and what `normalize` makes of them."""
    scores = correlate(
        query_ptr,
        query_rows,
        is_query,
        query_stride_c,
        key_ptr,
        key_rows,
        is_key,
        key_stride_c,
        embed,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        PRECISION,
    )
    scores *= inverse_temperature
    counted = in_window
    if BORDER == 'mask':
        counted &= is_key[None, :]
    weights, reciprocal = normalize(scores, counted, eps, NORMALIZATION)
    return scores, counted, weights, reciprocal


@triton.jit(do_not_specialize=UNSPECIALIZED)
def affiliation_fwd_kernel(
    query_ptr,
    query_stride_n,
    query_stride_c,
    query_stride_h,
    query_stride_w,
    key_ptr,
    key_stride_n,
    key_stride_c,
    key_stride_h,
    key_stride_w,
    value_ptr,
    value_stride_n,
    value_stride_c,
    value_stride_h,
    value_stride_w,
    out_ptr,
    out_stride_n,
    out_stride_c,
    out_stride_h,
    out_stride_w,
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
    NORMALIZATION: tl.constexpr,
    BORDER: tl.constexpr,
    SCALED: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    SLOTS_Y: tl.constexpr,
    SLOTS_X: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[l'] = sum_p w[l', p] value[l + p], w = normalize(<query[l'], key[l + p]> / T).

    query (N, D, Hg, Wg), key (N, D, H, W), value (N, C, H, W), out (N, C, Hg, Wg), each with its
    strides; D is ``embed``, C ``channels``. One program owns ``share`` channels of a tile of cells
    of one image. The grid is (N * tiles_y * tiles_x * splits,).
    """
    image, tile_y, tile_x, split = locate(splits, tiles_y, tiles_x)
    image = image.to(tl.int64)
    query_ptr += image * query_stride_n
    key_ptr += image * key_stride_n
    value_ptr += image * value_stride_n
    out_ptr += image * out_stride_n

    pixel_y, pixel_x, is_query, cell_y, cell_x, is_key, _, in_window = tile_windows(
        tile_y,
        tile_x,
        cells_y,
        cells_x,
        high_y,
        high_x,
        KERNEL_SIZE,
        BORDER,
        TILE_H,
        TILE_W,
        SLOTS_Y,
        SLOTS_X,
        EXACT,
        BLOCK_M,
        BLOCK_N,
    )
    query_rows = pixel_y * query_stride_h + pixel_x * query_stride_w
    key_rows = cell_y * key_stride_h + cell_x * key_stride_w
    _, _, weights, _ = affiliate(
        query_ptr,
        query_rows,
        is_query,
        query_stride_c,
        key_ptr,
        key_rows,
        is_key,
        key_stride_c,
        in_window,
        embed,
        inverse_temperature,
        eps,
        NORMALIZATION,
        BORDER,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        PRECISION,
    )
    weights, scale = fit(weights, value_ptr.dtype.element_ty, SCALED)
    gather(
        weights,
        scale,
        value_ptr,
        cell_y * value_stride_h + cell_x * value_stride_w,
        is_key,
        value_stride_c,
        out_ptr,
        pixel_y * out_stride_h + pixel_x * out_stride_w,
        is_query,
        out_stride_c,
        split * share,
        tl.minimum(split * share + share, channels),
        channels,
        BLOCK_C,
        PRECISION,
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def affiliation_bwd_kernel(
    grad_ptr,
    grad_stride_n,
    grad_stride_c,
    grad_stride_h,
    grad_stride_w,
    query_ptr,
    query_stride_n,
    query_stride_c,
    query_stride_h,
    query_stride_w,
    key_ptr,
    key_stride_n,
    key_stride_c,
    key_stride_h,
    key_stride_w,
    value_ptr,
    value_stride_n,
    value_stride_c,
    value_stride_h,
    value_stride_w,
    grad_query_ptr,
    grad_query_stride_n,
    grad_query_stride_c,
    grad_query_stride_h,
    grad_query_stride_w,
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
    NORMALIZATION: tl.constexpr,
    BORDER: tl.constexpr,
    SCALED: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    SLOTS_Y: tl.constexpr,
    SLOTS_X: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of the query, and what those of key and value are assembled from.

    grad (N, C, Hg, Wg), query and grad_query (N, D, Hg, Wg), key (N, D, H, W), value (N, C, H, W),
    each with its strides. weights and grad_scores (N, Hg, Wg, K K), contiguous, receive the weights
    and the gradient of the inner products; with SCALED each pixel's divided by its entry in
    grad_scores_scale (N, Hg, Wg) and, without a normalization, in weights_scale. One program owns a
    tile of cells of one image. The grid is (N * tiles_y * tiles_x,).
    """
    image, tile_y, tile_x, _ = locate(1, tiles_y, tiles_x)
    image = image.to(tl.int64)
    grad_ptr += image * grad_stride_n
    query_ptr += image * query_stride_n
    key_ptr += image * key_stride_n
    value_ptr += image * value_stride_n
    grad_query_ptr += image * grad_query_stride_n

    pixel_y, pixel_x, is_query, cell_y, cell_x, is_key, position, in_window = tile_windows(
        tile_y,
        tile_x,
        cells_y,
        cells_x,
        high_y,
        high_x,
        KERNEL_SIZE,
        BORDER,
        TILE_H,
        TILE_W,
        SLOTS_Y,
        SLOTS_X,
        EXACT,
        BLOCK_M,
        BLOCK_N,
    )
    query_rows = pixel_y * query_stride_h + pixel_x * query_stride_w
    key_rows = cell_y * key_stride_h + cell_x * key_stride_w
    scores, counted, weights, reciprocal = affiliate(
        query_ptr,
        query_rows,
        is_query,
        query_stride_c,
        key_ptr,
        key_rows,
        is_key,
        key_stride_c,
        in_window,
        embed,
        inverse_temperature,
        eps,
        NORMALIZATION,
        BORDER,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        PRECISION,
    )
    grad_weights = correlate(
        grad_ptr,
        pixel_y * grad_stride_h + pixel_x * grad_stride_w,
        is_query,
        grad_stride_c,
        value_ptr,
        cell_y * value_stride_h + cell_x * value_stride_w,
        is_key,
        value_stride_c,
        channels,
        BLOCK_M,
        BLOCK_N,
        BLOCK_C,
        PRECISION,
    )
    grad_scores = normalize_bwd(grad_weights, scores, weights, reciprocal, counted, NORMALIZATION)
    grad_scores *= inverse_temperature

    dtype: tl.constexpr = value_ptr.dtype.element_ty
    # Other normalizations keep the weights between 0 and 1.
    WEIGHTS_SCALED: tl.constexpr = SCALED and NORMALIZATION == 'none'
    weights, weights_scale = fit(weights, dtype, WEIGHTS_SCALED)
    grad_scores, grad_scores_scale = fit(grad_scores, dtype, SCALED)
    pixel = (image * high_y + pixel_y) * high_x + pixel_x
    compact = pixel[:, None] * (KERNEL_SIZE * KERNEL_SIZE) + position
    mask = in_window & is_query[:, None]
    tl.store(weights_ptr + compact, weights, mask=mask)
    tl.store(grad_scores_ptr + compact, grad_scores, mask=mask)
    if WEIGHTS_SCALED:
        tl.store(weights_scale_ptr + pixel, weights_scale, mask=is_query)
    if SCALED:
        tl.store(grad_scores_scale_ptr + pixel, grad_scores_scale, mask=is_query)
    gather(
        grad_scores,
        grad_scores_scale,
        key_ptr,
        key_rows,
        is_key,
        key_stride_c,
        grad_query_ptr,
        pixel_y * grad_query_stride_h + pixel_x * grad_query_stride_w,
        is_query,
        grad_query_stride_c,
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
        values=dict(
            inverse_temperature=1.0 / temperature,
            eps=eps,
        ),
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
        values=dict(
            weights_ptr=weights,
            grad_scores_ptr=grad_scores,
            weights_scale_ptr=weights_scale,
            grad_scores_scale_ptr=grad_scores_scale,
            inverse_temperature=1.0 / temperature,
            eps=eps,
        ),
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
