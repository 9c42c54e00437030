"""What the kernels share: the pixels and cells of a tile, its matrix products, its rows in memory.

A program owns a tile of cells (low-resolution pixels). Its queries are the pixels whose parents
they are; its keys are the cells and a halo of K // 2 around them. Queries and keys are the rows of
small matrices whose columns are channels, so that all windows of the tile together are two matrix
products; a mask keeps each query to its own window.

What belongs together travels as one named tuple. `Strided` and `Tile` are arguments of the
kernels: each of their elements is specialized as an argument of its own would be, so that a stride
of 1 is a constant and one that 16 divides is known to be so. The functions here make the others.

Offsets inside a tensor are 64 bit wide: an image alone may hold more than 2**31 values.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

#: For the values of these arguments no kernel is compiled anew: that 16 divides them helps no load.
#: They are arguments of their own, since the elements of a tuple are specialized in any case.
UNSPECIALIZED = ('cells_y', 'high_y', 'tiles_y', 'tiles_x', 'splits')


class Strided(NamedTuple):
    """A tensor (N, C, H, W) is given to a kernel by where it begins and its strides.

    Attributes:
        ptr: Pointer to its first value; the tensor itself at a launch.
        stride_n: Values from image to image.
        stride_c: Values from channel to channel.
        stride_h: Values from row to row.
        stride_w: Values from column to column.
    """

    ptr: torch.Tensor | tl.tensor
    stride_n: int | tl.tensor
    stride_c: int | tl.tensor
    stride_h: int | tl.tensor
    stride_w: int | tl.tensor


class Tile(NamedTuple):
    """The tiles of a kernel have these constants in common, which are compiled into it.

    Attributes:
        height: Rows of cells of a tile.
        width: Columns of cells.
        slots_y: The most pixel rows of a cell.
        slots_x: The most pixel columns.
        exact: Whether every cell has slots_y x slots_x pixels.
        kernel_size: K.
        queries: Rows of a matrix of queries, a power of 2.
        keys: Rows of a matrix of keys, likewise.
    """

    height: tl.constexpr
    width: tl.constexpr
    slots_y: tl.constexpr
    slots_x: tl.constexpr
    exact: tl.constexpr
    kernel_size: tl.constexpr
    queries: tl.constexpr
    keys: tl.constexpr


class Sizes(NamedTuple):
    """An image has so many rows and columns, each an int32.

    Attributes:
        cells_y: Rows of cells.
        cells_x: Columns of cells.
        high_y: Rows of pixels.
        high_x: Columns of pixels.
    """

    cells_y: tl.tensor
    cells_x: tl.tensor
    high_y: tl.tensor
    high_x: tl.tensor


class Points(NamedTuple):
    """M pixels or cells of an image are the rows of a matrix.

    Attributes:
        y: (M,), int64, rows in the image.
        x: (M,), int64, columns.
        inside: (M,), whether there are such ones, to be read or written.
    """

    y: tl.tensor
    x: tl.tensor
    inside: tl.tensor


class Windows(NamedTuple):
    """The M queries of a tile are joined to its N keys by windows.

    Attributes:
        pixels: `Points` of the queries.
        cells: `Points` of the keys.
        position: (M, N), int32, where in the query's window the key lies, row-major.
        inside: (M, N), whether it lies in the window at all.
    """

    pixels: Points
    cells: Points
    position: tl.tensor
    inside: tl.tensor


class Rows(NamedTuple):
    """M points of an image lie there in the memory of a tensor.

    Attributes:
        ptr: Pointer to the first value of the image.
        offsets: (M,), int64, values from there to each point's first channel; int32 where an image
            has few enough, which takes fewer registers.
        inside: (M,), whether there is such a point.
        stride_c: Values from channel to channel.
    """

    ptr: tl.tensor
    offsets: tl.tensor
    inside: tl.tensor
    stride_c: tl.tensor


@triton.jit
def locate(splits, tiles_y, tiles_x):
    """Image, tile row, tile column and share of the channels of this program.

    The shares of a tile run side by side, then the tiles of a row, whose halos overlap.
    """
    program = tl.program_id(0)
    tile = program // splits
    row = tile // tiles_x
    return row // tiles_y, row % tiles_y, tile % tiles_x, program % splits


#: Whether kernels are interpreted and not compiled.
INTERPRETED = tl.constexpr(not isinstance(locate, triton.JITFunction))


@triton.jit
def first_child(cell, cells, length):
    """First of ``length`` pixels whose parent, (i * cells) // length, is ``cell`` >= 0."""
    return (cell * length + cells - 1) // cells


@triton.jit
def within(y, x, height, width):
    """Tell which rows and columns are those of a map of ``height`` rows and ``width`` columns."""
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def tile_pixels(index, y0, x0, sizes, tile, HALO: tl.constexpr, ROW: tl.constexpr):
    """Find the pixels whose parents are the cells of a tile and of a halo around it.

    Args:
        index: (M,), numbers of the pixels, row by row.
        y0: Row of the first of these cells; may lie outside the image, as may others.
        x0: Its column.
        sizes: `Sizes` of the image.
        tile: The `Tile`.
        HALO: Rows and columns of cells on each side of the tile.
        ROW: Numbers of a row, at least (width + 2 HALO) * slots_x.

    Returns:
        (M,) row and column of each pixel's parent, counted from the first cell, and the `Points`.
    """
    row, column = index // ROW, index % ROW
    y, x = row // tile.slots_y, column // tile.slots_x
    HEIGHT: tl.constexpr = (tile.height + 2 * HALO) * tile.slots_y
    WIDTH: tl.constexpr = (tile.width + 2 * HALO) * tile.slots_x
    inside = (row < HEIGHT) & (column < WIDTH)
    if tile.exact:
        # They are compared as pixels, and not as cells: the compiler sees whole runs inside, and
        # moves them together.
        pixel_y, pixel_x = y0 * tile.slots_y + row, x0 * tile.slots_x + column
        inside &= within(pixel_y, pixel_x, sizes.high_y, sizes.high_x)
    else:
        cell_y, cell_x = y0 + y, x0 + x
        inside &= within(cell_y, cell_x, sizes.cells_y, sizes.cells_x)
        cell_y, cell_x = tl.maximum(cell_y, 0), tl.maximum(cell_x, 0)
        pixel_y = first_child(cell_y, sizes.cells_y, sizes.high_y) + row % tile.slots_y
        pixel_x = first_child(cell_x, sizes.cells_x, sizes.high_x) + column % tile.slots_x
        inside &= pixel_y < first_child(cell_y + 1, sizes.cells_y, sizes.high_y)
        inside &= pixel_x < first_child(cell_x + 1, sizes.cells_x, sizes.high_x)
    return y, x, Points(pixel_y.to(tl.int64), pixel_x.to(tl.int64), inside)


@triton.jit
def tile_halo(y0, x0, sizes, tile, BORDER: tl.constexpr):
    """Find the cells of a tile and of the halo around it.

    Args:
        y0: Row of the tile's first cell.
        x0: Its column.
        sizes: `Sizes` of the image.
        tile: The `Tile`.
        BORDER: With 'replicate' a cell outside the image is the nearest one on its edge.

    Returns:
        (N,) row and column of each cell in the halo, and the `Points`.
    """
    RADIUS: tl.constexpr = tile.kernel_size // 2
    WIDTH: tl.constexpr = tile.width + 2 * RADIUS
    index = tl.arange(0, tile.keys)
    y, x = index // WIDTH, index % WIDTH
    cell_y, cell_x = y0 + y - RADIUS, x0 + x - RADIUS
    inside = y < tile.height + 2 * RADIUS
    if BORDER == 'replicate':
        cell_y = tl.minimum(tl.maximum(cell_y, 0), sizes.cells_y - 1)
        cell_x = tl.minimum(tl.maximum(cell_x, 0), sizes.cells_x - 1)
    else:
        inside &= within(cell_y, cell_x, sizes.cells_y, sizes.cells_x)
    return y, x, Points(cell_y.to(tl.int64), cell_x.to(tl.int64), inside)


@triton.jit
def window_positions(query_y, query_x, key_y, key_x, KERNEL_SIZE: tl.constexpr):
    """Where in the window of each query each key lies.

    Args:
        query_y: (M,), row of the query's parent in the tile.
        query_x: Its column.
        key_y: (N,), row of the key in the tile's halo.
        key_x: Its column.
        KERNEL_SIZE: K.

    Returns:
        Positions (M, N), row-major, and whether they are in the window at all.
    """
    dy = key_y[None, :] - query_y[:, None]
    dx = key_x[None, :] - query_x[:, None]
    inside = (dy >= 0) & (dy < KERNEL_SIZE) & (dx >= 0) & (dx < KERNEL_SIZE)
    return dy * KERNEL_SIZE + dx, inside


@triton.jit
def tile_windows(tile_y, tile_x, sizes, tile, BORDER: tl.constexpr):
    """Find the `Windows` of a tile.

    Args:
        tile_y: Row of the tile among the tiles of the image.
        tile_x: Its column.
        sizes: `Sizes` of the image.
        tile: The `Tile`.
        BORDER: As `tile_halo` has it.
    """
    y0, x0 = tile_y * tile.height, tile_x * tile.width
    index = tl.arange(0, tile.queries)
    query_y, query_x, pixels = tile_pixels(index, y0, x0, sizes, tile, 0, tile.width * tile.slots_x)
    key_y, key_x, cells = tile_halo(y0, x0, sizes, tile, BORDER)
    position, inside = window_positions(query_y, query_x, key_y, key_x, tile.kernel_size)
    return Windows(pixels, cells, position, inside)


@triton.jit
def advance(tensor, image, channel):
    """Let a `Strided` tensor begin at an image and one of its channels, both int64."""
    ptr = tensor.ptr + (image * tensor.stride_n + channel * tensor.stride_c)
    return Strided(ptr, tensor.stride_n, tensor.stride_c, tensor.stride_h, tensor.stride_w)


@triton.jit
def rows_of(tensor, points):
    """Find the `Rows` that the `Points` of a `Strided` tensor's first image are."""
    offsets = points.y * tensor.stride_h + points.x * tensor.stride_w
    return Rows(tensor.ptr, offsets, points.inside, tensor.stride_c)


@triton.jit
def block_of(rows, start, channels, BLOCK_C: tl.constexpr):
    """Point (M, BLOCK_C) at the channels of `Rows` from ``start`` on, and tell which are there."""
    channel = start + tl.arange(0, BLOCK_C)
    offsets = channel.to(rows.offsets.dtype) * rows.stride_c
    mask = rows.inside[:, None] & (channel < channels)[None, :]
    return rows.ptr + rows.offsets[:, None] + offsets[None, :], mask


@triton.jit
def window_of(rows, position):
    """Point (M, N) at the channels of `Rows` that are positions in their windows."""
    return rows.ptr + rows.offsets[:, None] + position.to(tl.int64) * rows.stride_c


@triton.jit
def load_rows(rows, start, channels, BLOCK_C: tl.constexpr):
    """Read BLOCK_C of ``channels`` channels of `Rows`, from ``start``; 0 where none is."""
    pointers, mask = block_of(rows, start, channels, BLOCK_C)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store_rows(rows, start, channels, values, BLOCK_C: tl.constexpr):
    """Write what `load_rows` reads, in the dtype of the tensor."""
    pointers, mask = block_of(rows, start, channels, BLOCK_C)
    tl.store(pointers, values.to(rows.ptr.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, sums, PRECISION: tl.constexpr):
    """Sums + a b in float32; float32 operands in ``PRECISION``, 'ieee' or 'tf32'."""
    if INTERPRETED:
        # The interpreter would multiply the bit patterns of bfloat16.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def correlate(
    a, b, channels, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr, ONE_BLOCK: tl.constexpr = False
):
    """Multiply M and N `Rows`: inner products (M, N) over all channels, BLOCK_C at a time.

    With ONE_BLOCK the channels are no more than that. There is no loop then, and the loop that it
    would be in can be pipelined.
    """
    sums = tl.zeros((a.offsets.shape[0], b.offsets.shape[0]), tl.float32)
    if ONE_BLOCK:
        a_block, b_block = load_rows(a, 0, channels, BLOCK_C), load_rows(b, 0, channels, BLOCK_C)
        sums = dot(a_block, tl.trans(b_block), sums, PRECISION)
    else:
        for start in range(0, channels, BLOCK_C):
            a_block = load_rows(a, start, channels, BLOCK_C)
            b_block = load_rows(b, start, channels, BLOCK_C)
            sums = dot(a_block, tl.trans(b_block), sums, PRECISION)
    return sums


@triton.jit
def fit(rows, DTYPE: tl.constexpr, SCALED: tl.constexpr):
    """Cast the rows of a matrix to the dtype of a matrix product.

    With SCALED each row is divided by its largest magnitude, for a dtype whose range it may leave.

    Returns:
        The matrix, and the factor of each row.
    """
    if SCALED:
        # The factor of a row of zeros is 0: one of 1 would be the largest of all.
        scale = tl.max(tl.abs(rows), 1)
        rows = rows / tl.where(scale > 0, scale, 1.0)[:, None]
    else:
        scale = tl.full((rows.shape[0],), 1.0, tl.float32)
    return rows.to(DTYPE), scale


@triton.jit
def gather(
    weights,
    scale,
    source,
    target,
    start,
    stop,
    channels,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write scale * (weights @ source), channels ``start`` to ``stop``, BLOCK_C at a time.

    Args:
        weights: (M, N).
        scale: (M,), float32.
        source: N `Rows`, with weights' dtype.
        target: M `Rows`.
        start: The first channel to be written.
        stop: The one after the last.
        channels: Channels that there are.
        BLOCK_C: How many are written at a time.
        PRECISION: As `dot` has it.
    """
    for c in range(start, stop, BLOCK_C):
        block = load_rows(source, c, channels, BLOCK_C)
        sums = tl.zeros((weights.shape[0], BLOCK_C), tl.float32)
        sums = dot(weights, block, sums, PRECISION) * scale[:, None]
        store_rows(target, c, channels, sums, BLOCK_C)
