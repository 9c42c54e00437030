"""Assembly: weighted sums of a map over windows, and their transpose, which is the gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .launch import Constants, Device, Plan, plan_tiles, run, tiles_of
from .window import (
    UNSPECIALIZED,
    Points,
    Sizes,
    advance,
    dot,
    gather,
    load_rows,
    locate,
    rows_of,
    store_rows,
    tile_pixels,
    tile_windows,
    window_of,
    window_positions,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def assembly_fwd_kernel(
    weights,
    value,
    out,
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
    tile,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[l'] = factor * sum_p weights[l', p] value[l + p], the value being 0 outside the image.

    weights (N, G K K, Hg, Wg), value (N, G C, H, W) and out (N, G C, Hg, Wg) are `Strided`,
    ``tile`` is the `Tile`; C is ``channels``, G ``groups``. One program owns ``share`` channels of
    a tile of cells of one image and group. The grid is (N * G * tiles_y * tiles_x * splits,).
    """
    POSITIONS: tl.constexpr = tile.kernel_size * tile.kernel_size
    image, tile_y, tile_x, split = locate(splits, tiles_y, tiles_x)
    group, image = image % groups, (image // groups).to(tl.int64)
    channel = (group * channels).to(tl.int64)
    weights = advance(weights, image, (group * POSITIONS).to(tl.int64))
    value, out = advance(value, image, channel), advance(out, image, channel)

    sizes = Sizes(cells_y, cells_x, high_y, high_x)
    windows = tile_windows(tile_y, tile_x, sizes, tile, 'zero')
    pixels, cells = windows.pixels, windows.cells
    rows = rows_of(weights, pixels)
    # A weight whose position lies outside the image meets a 0: it need not be read.
    matrix = tl.load(
        window_of(rows, windows.position),
        mask=windows.inside & pixels.inside[:, None] & cells.inside[None, :],
        other=0.0,
    )
    gather(
        matrix,
        tl.full((matrix.shape[0],), 1.0, tl.float32) * factor,
        rows_of(value, cells),
        rows_of(out, pixels),
        split * share,
        tl.minimum(split * share + share, channels),
        channels,
        BLOCK_C,
        PRECISION,
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def assembly_bwd_kernel(
    weights,
    grad,
    out,
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
    tile,
    PRECISION: tl.constexpr,
    MARGIN: tl.constexpr,
    SCALED: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[k] = factor * sum over the pixels l' with k = l + p of weights[l', p] grad[l'].

    The transpose of the assembly: the gradient of its value, and of the key of a similarity.
    weights (N, G K K, Hg, Wg), grad (N, G C, Hg, Wg) and out (N, G C, H + 2 MARGIN, W + 2 MARGIN)
    are `Strided`, ``tile`` is the `Tile`; scale (N, G, Hg, Wg), contiguous, by which a pixel's
    weights are multiplied, is read with SCALED. One program owns BLOCK_C channels of a tile of
    cells of out, its keys, and reads the pixels around it, its queries, some at a time, whole rows
    of ROW; nobody else writes to its tile, so the sums have one order. The grid is
    (N * G * tiles_y * tiles_x * splits,).
    """
    RADIUS: tl.constexpr = tile.kernel_size // 2
    POSITIONS: tl.constexpr = tile.kernel_size * tile.kernel_size
    image, tile_y, tile_x, split = locate(splits, tiles_y, tiles_x)
    if SCALED:
        scale_ptr += image.to(tl.int64) * high_y * high_x
    group, image = image % groups, (image // groups).to(tl.int64)
    channel = (group * channels).to(tl.int64)
    weights = advance(weights, image, (group * POSITIONS).to(tl.int64))
    grad, out = advance(grad, image, channel), advance(out, image, channel)

    sizes = Sizes(cells_y, cells_x, high_y, high_x)
    key = tl.arange(0, tile.keys)
    key_y, key_x = key // tile.width, key % tile.width
    row, column = tile_y * tile.height + key_y, tile_x * tile.width + key_x
    is_key = (key_y < tile.height) & (row < cells_y + 2 * MARGIN) & (column < cells_x + 2 * MARGIN)
    # The windows of these cells are the first to reach the tile.
    y0 = tile_y * tile.height - MARGIN - RADIUS
    x0 = tile_x * tile.width - MARGIN - RADIUS
    sums = tl.zeros((tile.keys, BLOCK_C), tl.float32)
    # Rows of cells around the tile are passed over that are not in the image.
    first = tl.maximum(-y0, 0) * (tile.slots_y * ROW)
    last = tl.minimum(tile.height + 2 * RADIUS, cells_y - y0) * (tile.slots_y * ROW)
    for start in range(first, last, tile.queries):
        index = start + tl.arange(0, tile.queries)
        query_y, query_x, pixels = tile_pixels(index, y0, x0, sizes, tile, RADIUS, ROW)
        # Parents are counted from RADIUS before the tile, and windows begin RADIUS before them.
        position, in_window = window_positions(
            query_y - 2 * RADIUS, query_x - 2 * RADIUS, key_y, key_x, tile.kernel_size
        )
        rows = rows_of(weights, pixels)
        matrix = tl.load(
            window_of(rows, position),
            mask=in_window & pixels.inside[:, None] & is_key[None, :],
            other=0.0,
        )
        block = load_rows(rows_of(grad, pixels), split * share, channels, BLOCK_C)
        if SCALED:
            scale = tl.load(scale_ptr + pixels.y * high_x + pixels.x, mask=pixels.inside, other=0.0)
            # It is relative to the largest of the block, so that nothing leaves the dtype's range.
            top = tl.max(scale, 0)
            top = tl.where(top > 0.0, top, 1.0)
            block = (block * (scale / top)[:, None]).to(block.dtype)
            nothing = tl.zeros((tile.keys, BLOCK_C), tl.float32)
            sums += top * dot(tl.trans(matrix), block, nothing, PRECISION)
        else:
            sums = dot(tl.trans(matrix), block, sums, PRECISION)
    cells = Points(row.to(tl.int64), column.to(tl.int64), is_key)
    store_rows(rows_of(out, cells), split * share, channels, sums * factor, BLOCK_C)


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
    channels = value.shape[1] // groups

    def plan(constants: Constants, device: Device) -> Plan:
        tiles = tiles_of(tuning.FORWARD, weights, value, kernel_size, channels, groups)
        return plan_tiles(assembly_fwd_kernel, tiles, value.dtype, constants, device)

    run(
        assembly_fwd_kernel,
        plan,
        (kernel_size,),
        value,
        dict(weights=weights, value=value, out=out),
        {},
        dict(channels=channels, groups=groups, factor=factor),
        {},
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
    channels = out.shape[1] // groups

    def plan(constants: Constants, device: Device) -> Plan:
        tiles = tiles_of(tuning.TRANSPOSE, grad, out, kernel_size, channels, groups)
        tiles = tiles._replace(margin=margin)
        return plan_tiles(assembly_bwd_kernel, tiles, out.dtype, constants, device)

    run(
        assembly_bwd_kernel,
        plan,
        (kernel_size,),
        out,
        dict(weights=weights, grad=grad, out=target),
        dict(scale_ptr=scale),
        dict(channels=channels, groups=groups, factor=factor),
        dict(MARGIN=margin, SCALED=scale is not None),
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
