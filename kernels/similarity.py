"""Local similarity: inner products of pixels with the window around their parents."""

import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .launch import launch
from .window import UNSPECIALIZED, correlate, locate, tile_windows


@triton.jit(do_not_specialize=UNSPECIALIZED)
def similarity_fwd_kernel(
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
    """out[l', p] = factor * <query[l'], key[l + p]>, 0 where l + p lies outside the image.

    query (N, G C, Hg, Wg), key (N, G C, H, W), out (N, G K K, Hg, Wg), each with its strides; C is
    ``channels``, G ``groups``. One program owns a tile of cells of one image and group. The grid
    is (N * G * tiles_y * tiles_x,).
    """
    image, tile_y, tile_x, _ = locate(1, tiles_y, tiles_x)
    group, image = image % groups, (image // groups).to(tl.int64)
    query_ptr += image * query_stride_n + (group * channels).to(tl.int64) * query_stride_c
    key_ptr += image * key_stride_n + (group * channels).to(tl.int64) * key_stride_c
    out_ptr += image * out_stride_n
    out_ptr += (group * KERNEL_SIZE * KERNEL_SIZE).to(tl.int64) * out_stride_c

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
    scores = correlate(
        query_ptr,
        pixel_y * query_stride_h + pixel_x * query_stride_w,
        is_query,
        query_stride_c,
        key_ptr,
        cell_y * key_stride_h + cell_x * key_stride_w,
        is_key,
        key_stride_c,
        channels,
        BLOCK_M,
        BLOCK_N,
        BLOCK_C,
        PRECISION,
    )
    out_rows = pixel_y * out_stride_h + pixel_x * out_stride_w
    tl.store(
        out_ptr + out_rows[:, None] + position.to(tl.int64) * out_stride_c,
        (scores * factor).to(out_ptr.dtype.element_ty),
        mask=in_window & is_query[:, None],
    )


def forward(
    query: Tensor, key: Tensor, out: Tensor, kernel_size: int, groups: int = 1, factor: float = 1.0
) -> None:
    """Write ``factor`` times the inner products of pixels and windows.

    Args:
        query: (N, G * C, Hg, Wg), float16, bfloat16 or float32, any strides.
        key: (N, G * C, H, W), likewise.
        out: (N, G * K * K, Hg, Wg), written to; positions row-major.
        kernel_size: K.
        groups: G, blocks of channels that are compared apart.
        factor: What the products are multiplied by.
    """
    launch(
        similarity_fwd_kernel,
        tuning.BACKWARD,
        query,
        key,
        kernel_size=kernel_size,
        channels=key.shape[1] // groups,
        groups=groups,
        tensors=dict(query=query, key=key, out=out),
        values=dict(factor=factor),
    )
