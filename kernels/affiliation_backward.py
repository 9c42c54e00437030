"""The gradient of point affiliation, without atomics and without a tensor of windows.

One launch over tiles of pixels computes scores and weights again, the gradient of the scores, and
from it at once that of the query and, of each tile, its part of the key's: a small matrix for the
cells of the tile and its halo. One launch over cells adds the parts up, of the up to four tiles
that a cell belongs to. The first launch also leaves one number a pixel by which its weights can be
had from its scores; with it a third launch, whose programs own cells, makes the weights of the
pixels around its tile anew and sums up the gradient of the value.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .affiliation import affiliate
from .assembly import fold_margin
from .flat import channels_innermost
from .launch import (
    Constants,
    Device,
    Launch,
    Plan,
    Tiles,
    most_rows,
    plan_fixed,
    plan_tiles,
    run,
    tiles_of,
)
from .normalization import normalize_bwd, weights_of
from .window import (
    UNSPECIALIZED,
    Points,
    Rows,
    Sizes,
    advance,
    correlate,
    dot,
    fit,
    load_rows,
    locate,
    rows_of,
    store_rows,
    tile_pixels,
    tile_windows,
    window_positions,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def affiliation_bwd_kernel(
    grad,
    query,
    key,
    value,
    grad_query,
    parts_ptr,
    scale_ptr,
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
    ONE_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the query's gradient, each tile's part of the key's, and the scales of the weights.

    grad (N, C, Hg, Wg), query and grad_query (N, D, Hg, Wg), key (N, D, H, W) and value
    (N, C, H, W) are `Strided`, ``tile`` is the `Tile`. parts (N, tiles_y, tiles_x, keys, D) and
    scale (N, Hg, Wg), contiguous, receive the sums over the tile's pixels of dS^T Q, and what
    `weights_of` takes. Those of grad_query, parts and scale that are None are left out. One program
    owns a tile of cells of one image. The grid is (N * tiles_y * tiles_x,).
    """
    image, tile_y, tile_x, _ = locate(1, tiles_y, tiles_x)
    image = image.to(tl.int64)
    grad, query = advance(grad, image, 0), advance(query, image, 0)
    key, value = advance(key, image, 0), advance(value, image, 0)

    sizes = Sizes(cells_y, cells_x, high_y, high_x)
    windows = tile_windows(tile_y, tile_x, sizes, tile, BORDER)
    pixels, cells = windows.pixels, windows.cells
    query_rows, key_rows = rows_of(query, pixels), rows_of(key, cells)
    GRADIENTS: tl.constexpr = (grad_query is not None) or (parts_ptr is not None)
    if ONE_D:
        # They are asked for now, and needed after the long product.
        query_block = load_rows(query_rows, 0, embed, BLOCK_D)
        key_block = load_rows(key_rows, 0, embed, BLOCK_D)
    if GRADIENTS:
        grad_weights = correlate(
            rows_of(grad, pixels), rows_of(value, cells), channels, BLOCK_C, PRECISION
        )
    if ONE_D:
        products = tl.zeros((tile.queries, tile.keys), tl.float32)
        products = dot(query_block, tl.trans(key_block), products, PRECISION)
    else:
        products = correlate(query_rows, key_rows, embed, BLOCK_D, PRECISION)
    scores, counted, weights, scale = affiliate(
        products, windows.inside, key_rows, inverse_temperature, eps, NORMALIZATION, BORDER
    )
    if scale_ptr is not None:
        pixel = (image * high_y + pixels.y) * high_x + pixels.x
        tl.store(scale_ptr + pixel, scale, mask=pixels.inside)
    if GRADIENTS:
        grad_scores = normalize_bwd(grad_weights, scores, weights, scale, counted, NORMALIZATION)
        grad_scores, factor = fit(
            grad_scores * inverse_temperature, value.ptr.dtype.element_ty, SCALED
        )
        transposed = tl.trans(grad_scores)
        for d in range(0, 1 if ONE_D else embed, BLOCK_D):
            if not ONE_D:
                query_block = load_rows(query_rows, d, embed, BLOCK_D)
                key_block = load_rows(key_rows, d, embed, BLOCK_D)
            if grad_query is not None:
                sums = tl.zeros((tile.queries, BLOCK_D), tl.float32)
                sums = dot(grad_scores, key_block, sums, PRECISION) * factor[:, None]
                target = rows_of(advance(grad_query, image, 0), pixels)
                store_rows(target, d, embed, sums, BLOCK_D)
            if parts_ptr is not None:
                number = (image * tiles_y + tile_y) * tiles_x + tile_x
                slot = number * tile.keys + tl.arange(0, tile.keys)
                parts = Rows(parts_ptr, slot * embed, tl.arange(0, tile.keys) >= 0, 1)
                sums = tl.zeros((tile.keys, BLOCK_D), tl.float32)
                sums = dot_scaled(transposed, query_block, factor, sums, SCALED, PRECISION)
                store_rows(parts, d, embed, sums, BLOCK_D)


@triton.jit
def dot_scaled(a, b, factor, sums, SCALED: tl.constexpr, PRECISION: tl.constexpr):
    """Sums + a (factor b): with SCALED the rows of b are multiplied, so that none leaves its range.

    Args:
        a: (M, N).
        b: (N, BLOCK), the dtype of a.
        factor: (N,), float32, not negative.
        sums: (M, BLOCK), float32.
        SCALED: Whether the factors are other than 1.
        PRECISION: As `dot` has it.
    """
    if SCALED:
        # They are relative to the largest, so that nothing leaves the dtype's range.
        top = tl.max(factor, 0)
        top = tl.where(top > 0.0, top, 1.0)
        b = (b * (factor / top)[:, None]).to(b.dtype)
        nothing = tl.zeros((sums.shape[0], sums.shape[1]), tl.float32)
        sums += top * dot(a, b, nothing, PRECISION)
    else:
        sums = dot(a, b, sums, PRECISION)
    return sums


@triton.jit(do_not_specialize=('cells_y', 'cells_x', 'tiles_y', 'tiles_x', 'blocks'))
def affiliation_key_bwd_kernel(
    parts_ptr,
    out,
    embed,
    cells_y,
    cells_x,
    tiles_y,
    tiles_x,
    blocks,
    MARGIN: tl.constexpr,
    RADIUS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add up the parts of each cell in the order of their tiles: the gradient of the key.

    parts (N, tiles_y, tiles_x, KEYS, D), contiguous, is what `affiliation_bwd_kernel` left; out
    (N, D, H + 2 MARGIN, W + 2 MARGIN) is `Strided`. One program owns BLOCK_P cells of an image. The
    grid is (N * blocks,).
    """
    # So many tiles reach a row or column of cells with their halo.
    REACH_Y: tl.constexpr = (2 * RADIUS + TILE_H - 1) // TILE_H + 1
    REACH_X: tl.constexpr = (2 * RADIUS + TILE_W - 1) // TILE_W + 1
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    width = cells_x + 2 * MARGIN
    index = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = index // width, index % width
    inside = row < cells_y + 2 * MARGIN
    y, x = row - MARGIN, column - MARGIN
    first_y, first_x = tl.maximum(y - RADIUS, 0) // TILE_H, tl.maximum(x - RADIUS, 0) // TILE_W
    last_y = tl.minimum((y + RADIUS) // TILE_H, tiles_y - 1)
    last_x = tl.minimum((x + RADIUS) // TILE_W, tiles_x - 1)
    points = Points(row.to(tl.int64), column.to(tl.int64), inside)
    target = rows_of(advance(out, image, 0), points)
    for d in range(0, embed, BLOCK_D):
        sums = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
        for i in tl.static_range(REACH_Y):
            for j in tl.static_range(REACH_X):
                tile_y, tile_x = first_y + i, first_x + j
                there = inside & (tile_y <= last_y) & (tile_x <= last_x)
                slot = (y - tile_y * TILE_H + RADIUS) * (TILE_W + 2 * RADIUS)
                slot += x - tile_x * TILE_W + RADIUS
                number = (image * tiles_y + tile_y) * tiles_x + tile_x
                part = Rows(parts_ptr, (number * KEYS + slot) * embed, there, 1)
                sums += load_rows(part, d, embed, BLOCK_D).to(tl.float32)
        store_rows(target, d, embed, sums, BLOCK_D)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def affiliation_value_bwd_kernel(
    grad,
    query,
    key,
    out,
    scale_ptr,
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
    tile,
    NORMALIZATION: tl.constexpr,
    PRECISION: tl.constexpr,
    MARGIN: tl.constexpr,
    SCALED: tl.constexpr,
    ROW: tl.constexpr,
    ONE_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[k] = sum over the pixels l' with k = l + p of w[l', p] grad[l']: the value's gradient.

    grad (N, C, Hg, Wg), query (N, D, Hg, Wg), key (N, D, H, W) and out
    (N, C, H + 2 MARGIN, W + 2 MARGIN) are `Strided`, ``tile`` is the `Tile`; scale (N, Hg, Wg) is
    what `affiliation_bwd_kernel` left, and not read where nothing is divided. One program owns
    BLOCK_C channels of a tile of cells of out, and reads the pixels around it some at a time, whole
    rows of ROW; nobody else writes to its tile, so the sums have one order. With a MARGIN cells
    beyond the edge repeat it. The grid is (N * tiles_y * tiles_x * splits,).
    """
    RADIUS: tl.constexpr = tile.kernel_size // 2
    image, tile_y, tile_x, split = locate(splits, tiles_y, tiles_x)
    image = image.to(tl.int64)
    grad, query = advance(grad, image, 0), advance(query, image, 0)
    key, out = advance(key, image, 0), advance(out, image, 0)

    sizes = Sizes(cells_y, cells_x, high_y, high_x)
    index = tl.arange(0, tile.keys)
    key_y, key_x = index // tile.width, index % tile.width
    row, column = tile_y * tile.height + key_y, tile_x * tile.width + key_x
    is_key = (key_y < tile.height) & (row < cells_y + 2 * MARGIN) & (column < cells_x + 2 * MARGIN)
    cell_y = tl.minimum(tl.maximum(row - MARGIN, 0), cells_y - 1)
    cell_x = tl.minimum(tl.maximum(column - MARGIN, 0), cells_x - 1)
    key_rows = rows_of(key, Points(cell_y.to(tl.int64), cell_x.to(tl.int64), is_key))
    if ONE_D:
        key_block = load_rows(key_rows, 0, embed, BLOCK_D)
    # The windows of these cells are the first to reach the tile.
    y0 = tile_y * tile.height - MARGIN - RADIUS
    x0 = tile_x * tile.width - MARGIN - RADIUS
    sums = tl.zeros((tile.keys, BLOCK_C), tl.float32)
    # Rows of cells around the tile are passed over that are not in the image.
    first = tl.maximum(-y0, 0) * (tile.slots_y * ROW)
    last = tl.minimum(tile.height + 2 * RADIUS, cells_y - y0) * (tile.slots_y * ROW)
    for begin in range(first, last, tile.queries):
        number = begin + tl.arange(0, tile.queries)
        query_y, query_x, pixels = tile_pixels(number, y0, x0, sizes, tile, RADIUS, ROW)
        block = load_rows(rows_of(grad, pixels), split * share, channels, BLOCK_C)
        query_rows = rows_of(query, pixels)
        if ONE_D:
            query_block = load_rows(query_rows, 0, embed, BLOCK_D)
            scores = tl.zeros((tile.keys, tile.queries), tl.float32)
            scores = dot(key_block, tl.trans(query_block), scores, PRECISION)
        else:
            scores = correlate(key_rows, query_rows, embed, BLOCK_D, PRECISION)
        scores *= inverse_temperature
        # Parents are counted from RADIUS before the tile, and windows begin RADIUS before them;
        # with the signs turned, the keys are the rows.
        _, counted = window_positions(
            -key_y, -key_x, -(query_y - 2 * RADIUS), -(query_x - 2 * RADIUS), tile.kernel_size
        )
        counted &= is_key[:, None] & pixels.inside[None, :]
        scale = tl.full((tile.queries,), 1.0, tl.float32)
        if NORMALIZATION != 'none':
            place = (image * high_y + pixels.y) * high_x + pixels.x
            scale = tl.load(scale_ptr + place, mask=pixels.inside, other=0.0)
        weights = weights_of(scores, counted, scale[None, :], NORMALIZATION)
        factor = scale
        if SCALED:
            factor = tl.max(tl.abs(weights), 0)
            weights = weights / tl.where(factor > 0.0, factor, 1.0)[None, :]
        weights = weights.to(block.dtype)
        sums = dot_scaled(weights, block, factor, sums, SCALED, PRECISION)
    cells = Points(row.to(tl.int64), column.to(tl.int64), is_key)
    store_rows(rows_of(out, cells), split * share, channels, sums, BLOCK_C)


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    grad_value: Tensor | None,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    eps: float,
) -> None:
    """Write the gradients that are asked for; the same bits at every run of one choice of tiles.

    Args:
        grad: Gradient of the result (N, C, Hg, Wg), any strides.
        query: As `forward` had it.
        key: Likewise.
        value: Likewise.
        grad_query: Written to, like ``query``; or None, like the next two.
        grad_key: Likewise.
        grad_value: Likewise.
        kernel_size: As `forward` had it.
        normalization: Likewise.
        temperature: Likewise.
        border: Likewise.
        eps: Likewise.
    """
    key, value = channels_innermost(key), channels_innermost(value)
    (n, _, high_y, high_x), half = query.shape, value.dtype == torch.float16
    margin = kernel_size // 2 if border == 'replicate' else 0
    sizes = dict(embed=key.shape[1], channels=value.shape[1])
    options = dict(inverse_temperature=1.0 / temperature)
    scale = None
    if grad_value is not None and normalization != 'none':
        scale = torch.empty((n, high_y, high_x), dtype=torch.float32, device=query.device)
    tiles = tiles_of(tuning.BACKWARD, query, value, kernel_size, value.shape[1])
    tiles = tiles._replace(embed=key.shape[1], channels_last=grad.stride(1) == 1)
    if grad_query is not None or grad_key is not None or scale is not None:
        # A gradient knows no range: in float16 each pixel's has a factor of its own.
        constants = dict(NORMALIZATION=normalization, BORDER=border, SCALED=half)
        parts = None
        if grad_key is not None:
            rows = most_rows(affiliation_bwd_kernel, tiles, value, constants)
            # In 16 bits the parts of the least gradients would be lost before they are a sum.
            parts = key.new_empty(rows, key.shape[1], dtype=torch.float32)
        item = run(
            affiliation_bwd_kernel,
            planned(affiliation_bwd_kernel, tiles, value),
            tiles,
            value,
            dict(grad=grad, query=query, key=key, value=value, grad_query=grad_query),
            dict(parts_ptr=parts, scale_ptr=scale),
            dict(sizes, eps=eps, **options),
            constants,
        )
        if parts is not None:
            with_margin(grad_key, margin, lambda out: add_parts(parts, out, margin, tiles, item))
    if grad_value is not None:
        tiles = tiles._replace(table=tuning.VALUE, margin=margin)
        # Weights without a bound may leave the range of float16.
        scaled = half and normalization == 'none'
        with_margin(
            grad_value,
            margin,
            lambda out: run(
                affiliation_value_bwd_kernel,
                planned(affiliation_value_bwd_kernel, tiles, value),
                tiles,
                value,
                dict(grad=grad, query=query, key=key, out=out),
                dict(scale_ptr=scale),
                sizes | options,
                dict(NORMALIZATION=normalization, MARGIN=margin, SCALED=scaled),
            ),
        )


def planned(
    kernel: triton.JITFunction, tiles: Tiles, like: Tensor
) -> Callable[[Constants, Device], Plan]:
    """Return the plan of a launch over tiles, as `run` has it."""
    return lambda constants, device: plan_tiles(kernel, tiles, like.dtype, constants, device)


def with_margin(out: Tensor, margin: int, write: Callable[[Tensor], object]) -> None:
    """Let a map be written, with a margin around it that is added to its edges, if there is one.

    Args:
        out: (N, C, H, W), written to.
        margin: Rows and columns on each side.
        write: Writes a map (N, C, H + 2 margin, W + 2 margin).
    """
    if not margin:
        write(out)
        return
    n, c, height, width = out.shape
    size = (n, c, height + 2 * margin, width + 2 * margin)
    padded = torch.empty(size, dtype=torch.float32, device=out.device)
    write(padded)
    out.copy_(fold_margin(padded, margin))


def add_parts(parts: Tensor, out: Tensor, margin: int, tiles: Tiles, item: Launch) -> None:
    """Write the gradient of the key from the parts of tiles.

    Args:
        parts: What `affiliation_bwd_kernel` left, (rows, D).
        out: (N, D, H + 2 margin, W + 2 margin), written to.
        margin: Rows and columns around the map.
        tiles: Those of the launch.
        item: The launch.
    """
    tile, (cells_y, cells_x), embed = item.arguments['tile'], tiles.low, parts.shape[1]
    blocks = dict(
        MARGIN=margin,
        RADIUS=tiles.kernel_size // 2,
        TILE_H=tile.height.value,
        TILE_W=tile.width.value,
        KEYS=tile.keys.value,
        BLOCK_P=32,
        BLOCK_D=min(64, triton.next_power_of_2(embed)),
    )
    count = -(-(cells_y + 2 * margin) * (cells_x + 2 * margin) // blocks['BLOCK_P'])

    def plan(constants: Constants, device: Device) -> Plan:
        programs = tiles.images * count
        return plan_fixed(affiliation_key_bwd_kernel, programs, blocks, constants, device)

    run(
        affiliation_key_bwd_kernel,
        plan,
        (margin, tiles.kernel_size, tile),
        parts,
        dict(out=out),
        dict(parts_ptr=parts),
        dict(
            embed=embed,
            cells_y=cells_y,
            cells_x=cells_x,
            tiles_y=item.arguments['tiles_y'],
            tiles_x=item.arguments['tiles_x'],
            blocks=count,
        ),
        {},
    )
