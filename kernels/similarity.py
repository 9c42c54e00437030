"""Local similarity: inner products of pixels with the window around their parents."""

import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .launch import Constants, Device, Plan, plan_tiles, run, tiles_of
from .window import (
    UNSPECIALIZED,
    Sizes,
    advance,
    correlate,
    locate,
    rows_of,
    tile_windows,
    window_of,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def similarity_fwd_kernel(
    query,
    key,
    out,
    channels,
    groups,
    cells_y,
    cells_x,
    high_y,
    high_x,
    tiles_y,
    tiles_x,
    factor,
    tile,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[l', p] = factor * <query[l'], key[l + p]>, 0 where l + p lies outside the image.

    query (N, G C, Hg, Wg), key (N, G C, H, W) and out (N, G K K, Hg, Wg) are `Strided`, ``tile`` is
    the `Tile`; C is ``channels``, G ``groups``. One program owns a tile of cells of one image and
    group. The grid is (N * G * tiles_y * tiles_x,).
    """
    POSITIONS: tl.constexpr = tile.kernel_size * tile.kernel_size
    image, tile_y, tile_x, _ = locate(1, tiles_y, tiles_x)
    group, image = image % groups, (image // groups).to(tl.int64)
    channel = (group * channels).to(tl.int64)
    query, key = advance(query, image, channel), advance(key, image, channel)
    out = advance(out, image, (group * POSITIONS).to(tl.int64))

    sizes = Sizes(cells_y, cells_x, high_y, high_x)
    windows = tile_windows(tile_y, tile_x, sizes, tile, 'zero')
    scores = correlate(
        rows_of(query, windows.pixels), rows_of(key, windows.cells), channels, BLOCK_C, PRECISION
    )
    rows = rows_of(out, windows.pixels)
    tl.store(
        window_of(rows, windows.position),
        (scores * factor).to(out.ptr.dtype.element_ty),
        mask=windows.inside & windows.pixels.inside[:, None],
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
    channels = key.shape[1] // groups

    def plan(constants: Constants, device: Device) -> Plan:
        tiles = tiles_of(tuning.BACKWARD, query, key, kernel_size, channels, groups)
        return plan_tiles(similarity_fwd_kernel, tiles, key.dtype, constants, device)

    run(
        similarity_fwd_kernel,
        plan,
        (kernel_size,),
        key,
        dict(query=query, key=key, out=out),
        {},
        dict(channels=channels, groups=groups, factor=factor),
        {},
    )
