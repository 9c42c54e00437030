"""Assembly: weighted sums of a map over windows, and their transpose, which is the gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .launch import launch
from .window import (
    UNSPECIALIZED,
    dot,
    gather,
    load_rows,
    locate,
    store_rows,
    tile_pixels,
    tile_windows,
    window_positions,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def assembly_fwd_kernel(
    weights_ptr,
    weights_stride_n,
    weights_stride_c,
    weights_stride_h,
    weights_stride_w,
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
    channels,
    groups,
    cells_y,
    cells_x,
    high_y,
    high_x,
    tiles_y,
    tiles_x,
    share,
    splits,
    factor,
    KERNEL_SIZE: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    SLOTS_Y: tl.constexpr,
    SLOTS_X: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[l'] = factor * sum_p weights[l', p] value[l + p], the value being 0 outside the image.

    weights (N, G K K, Hg, Wg), value (N, G C, H, W), out (N, G C, Hg, Wg), each with its strides;
    C is ``channels``, G ``groups``. One program owns ``share`` channels of a tile of cells of one
    image and group. The grid is (N * G * tiles_y * tiles_x * splits,).
    """
    image, tile_y, tile_x, split = locate(splits, tiles_y, tiles_x)
    group, image = image % groups, (image // groups).to(tl.int64)
    weights_ptr += image * weights_stride_n
    weights_ptr += (group * KERNEL_SIZE * KERNEL_SIZE).to(tl.int64) * weights_stride_c
    value_ptr += image * value_stride_n + (group * channels).to(tl.int64) * value_stride_c
    out_ptr += image * out_stride_n + (group * channels).to(tl.int64) * out_stride_c

    pixel_y, pixel_x, is_query, cell_y, cell_x, is_key, position, in_window = tile_windows(
        tile_y,
        tile_x,
        cells_y,
        cells_x,
        high_y,
        high_x,
        KERNEL_SIZE,
        'zero',
        TILE_H,
        TILE_W,
        SLOTS_Y,
        SLOTS_X,
        EXACT,
        BLOCK_M,
        BLOCK_N,
    )
    weights_rows = pixel_y * weights_stride_h + pixel_x * weights_stride_w
    # A weight whose position lies outside the image meets a 0: it need not be read.
    weights = tl.load(
        weights_ptr + weights_rows[:, None] + position.to(tl.int64) * weights_stride_c,
        mask=in_window & is_query[:, None] & is_key[None, :],
        other=0.0,
    )
    gather(
        weights,
        tl.full((BLOCK_M,), 1.0, tl.float32) * factor,
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
def assembly_bwd_kernel(
    weights_ptr,
    weights_stride_n,
    weights_stride_c,
    weights_stride_h,
    weights_stride_w,
    grad_ptr,
    grad_stride_n,
    grad_stride_c,
    grad_stride_h,
    grad_stride_w,
    out_ptr,
    out_stride_n,
    out_stride_c,
    out_stride_h,
    out_stride_w,
    scale_ptr,
    channels,
    groups,
    cells_y,
    cells_x,
    high_y,
    high_x,
    tiles_y,
    tiles_x,
    share,
    splits,
    factor,
    KERNEL_SIZE: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    SLOTS_Y: tl.constexpr,
    SLOTS_X: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    MARGIN: tl.constexpr,
    SCALED: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[k] = factor * sum over the pixels l' with k = l + p of weights[l', p] grad[l'].

    The transpose of the assembly: the gradient of its value, and of the key of a similarity.
    weights (N, G K K, Hg, Wg), grad (N, G C, Hg, Wg), out (N, G C, H + 2 MARGIN, W + 2 MARGIN),
    each with its strides; scale (N, G, Hg, Wg), contiguous, by which a pixel's weights are
    multiplied, is read with SCALED. One program owns BLOCK_C channels of a tile of cells of out,
    and reads the pixels around it BLOCK_M at a time, whole rows of ROW; nobody else writes to its
    tile, so the sums have one order. The grid is (N * G * tiles_y * tiles_x * splits,).
    """
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    image, tile_y, tile_x, split = locate(splits, tiles_y, tiles_x)
    if SCALED:
        scale_ptr += image.to(tl.int64) * high_y * high_x
    group, image = image % groups, (image // groups).to(tl.int64)
    weights_ptr += image * weights_stride_n
    weights_ptr += (group * KERNEL_SIZE * KERNEL_SIZE).to(tl.int64) * weights_stride_c
    grad_ptr += image * grad_stride_n + (group * channels).to(tl.int64) * grad_stride_c
    out_ptr += image * out_stride_n + (group * channels).to(tl.int64) * out_stride_c

    key = tl.arange(0, BLOCK_N)
    key_y, key_x = key // TILE_W, key % TILE_W
    row, column = tile_y * TILE_H + key_y, tile_x * TILE_W + key_x
    is_key = (key_y < TILE_H) & (row < cells_y + 2 * MARGIN) & (column < cells_x + 2 * MARGIN)
    # The first cells whose windows reach the tile.
    y0 = tile_y * TILE_H - MARGIN - RADIUS
    x0 = tile_x * TILE_W - MARGIN - RADIUS
    sums = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    # Of the rows of cells around the tile, those that are in the image.
    first = tl.maximum(-y0, 0) * (SLOTS_Y * ROW)
    last = tl.minimum(TILE_H + 2 * RADIUS, cells_y - y0) * (SLOTS_Y * ROW)
    for start in range(first, last, BLOCK_M):
        query_y, query_x, pixel_y, pixel_x, is_query = tile_pixels(
            start + tl.arange(0, BLOCK_M),
            y0,
            x0,
            cells_y,
            cells_x,
            high_y,
            high_x,
            TILE_H + 2 * RADIUS,
            TILE_W + 2 * RADIUS,
            ROW,
            SLOTS_Y,
            SLOTS_X,
            EXACT,
        )
        # Of the pixel's window, which lies 2 RADIUS before the tile's own cells.
        position, in_window = window_positions(
            query_y - 2 * RADIUS, query_x - 2 * RADIUS, key_y, key_x, KERNEL_SIZE
        )
        weights_rows = pixel_y * weights_stride_h + pixel_x * weights_stride_w
        weights = tl.load(
            weights_ptr + weights_rows[:, None] + position.to(tl.int64) * weights_stride_c,
            mask=in_window & is_query[:, None] & is_key[None, :],
            other=0.0,
        )
        grad = load_rows(
            grad_ptr,
            pixel_y * grad_stride_h + pixel_x * grad_stride_w,
            is_query,
            grad_stride_c,
            split * share,
            channels,
            BLOCK_C,
        )
        if SCALED:
            scale = tl.load(scale_ptr + pixel_y * high_x + pixel_x, mask=is_query, other=0.0)
            # Relative to the largest of the block, so that nothing leaves the dtype's range.
            top = tl.max(scale, 0)
            top = tl.where(top > 0.0, top, 1.0)
            grad = (grad * (scale / top)[:, None]).to(grad.dtype)
            nothing = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
            sums += top * dot(tl.trans(weights), grad, nothing, PRECISION)
        else:
            sums = dot(tl.trans(weights), grad, sums, PRECISION)
    out_rows = row.to(tl.int64) * out_stride_h + column.to(tl.int64) * out_stride_w
    store_rows(
        out_ptr, out_rows, is_key, out_stride_c, split * share, channels, sums * factor, BLOCK_C
    )


def forward(
    weights: Tensor,
    value: Tensor,
    out: Tensor,
    kernel_size: int,
    groups: int = 1,
    factor: float = 1.0,
) -> None:
    """Write ``factor`` times the weighted sums of ``value`` over windows.

    Args:
        weights: (N, G * K * K, Hg, Wg), float16, bfloat16 or float32, any strides.
        value: (N, G * C, H, W), likewise.
        out: (N, G * C, Hg, Wg), written to.
        kernel_size: K.
        groups: G, blocks of channels with weights of their own.
        factor: What the sums are multiplied by.
    """
    launch(
        assembly_fwd_kernel,
        tuning.FORWARD,
        weights,
        value,
        kernel_size=kernel_size,
        channels=value.shape[1] // groups,
        groups=groups,
        tensors=dict(weights=weights, value=value, out=out),
        values=dict(factor=factor),
    )


def backward(
    weights: Tensor,
    grad: Tensor,
    out: Tensor,
    kernel_size: int,
    groups: int = 1,
    factor: float = 1.0,
    *,
    scale: Tensor | None = None,
    replicate: bool = False,
) -> None:
    """Write ``factor`` times the transpose of `forward`: the gradient of its value.

    Args:
        weights: (N, G * K * K, Hg, Wg), float16, bfloat16 or float32, any strides.
        grad: Gradient of the result (N, G * C, Hg, Wg), likewise.
        out: (N, G * C, H, W), written to.
        kernel_size: K.
        groups: G.
        factor: What the sums are multiplied by.
        scale: (N, G, Hg, Wg), float32, contiguous: by which the weights are multiplied.
            Default: 1.
        replicate: Whether positions outside the image are its edge, and not left out.
    """
    margin = kernel_size // 2 if replicate else 0
    target = out
    if margin:
        (n, c, height, width) = out.shape
        size = (n, c, height + 2 * margin, width + 2 * margin)
        target = torch.empty(size, dtype=torch.float32, device=out.device)
    launch(
        assembly_bwd_kernel,
        tuning.TRANSPOSE,
        grad,
        out,
        kernel_size=kernel_size,
        channels=out.shape[1] // groups,
        groups=groups,
        tensors=dict(weights=weights, grad=grad, out=target),
        values=dict(channels=out.shape[1] // groups, groups=groups, factor=factor, scale_ptr=scale),
        constants=dict(MARGIN=margin, SCALED=scale is not None),
        margin=margin,
    )
    if margin:
        out.copy_(fold_margin(target, margin))


def fold_margin(padded: Tensor, margin: int) -> Tensor:
    """Add the margins of a map to its edges, in a fixed order: the gradient of edge padding.

    Args:
        padded: (N, C, H + 2 * margin, W + 2 * margin); changed in place.
        margin: Rows and columns on each side, at least 1.

    Returns:
        (N, C, H, W), a view.
    """
    for dim in (2, 3):
        length = padded.shape[dim] - 2 * margin
        inner = padded.narrow(dim, margin, length)
        inner.narrow(dim, 0, 1).add_(padded.narrow(dim, 0, margin).sum(dim, keepdim=True))
        last = padded.narrow(dim, margin + length, margin)
        inner.narrow(dim, length - 1, 1).add_(last.sum(dim, keepdim=True))
        padded = inner
    return padded
