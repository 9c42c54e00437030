"""What the kernels share: the pixels and cells of a tile, its matrix products, its rows in memory.

A program owns a tile of TILE_H x TILE_W cells (low-resolution pixels). Its queries are the pixels
whose parents they are, up to SLOTS_Y x SLOTS_X a cell; its keys are the cells and a halo of K // 2
around them. Queries and keys are the rows of small matrices whose columns are channels, so that
all windows of the tile together are two matrix products; a mask keeps each query to its own window.

Offsets inside a tensor are 64 bit wide: an image alone may hold more than 2**31 values.
"""

import triton
import triton.language as tl

#: Arguments whose divisibility helps no load: for each of their values a kernel would be compiled.
UNSPECIALIZED = ('cells_y', 'high_y', 'tiles_y', 'tiles_x', 'splits')


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
def tile_pixels(
    index,
    y0,
    x0,
    cells_y,
    cells_x,
    high_y,
    high_x,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    ROW: tl.constexpr,
    SLOTS_Y: tl.constexpr,
    SLOTS_X: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The pixels whose parents are the cells of a tile.

    Args:
        index: Numbers of the pixels in the tile, row by row.
        y0: Row of the tile's first cell; may lie outside the image, as may others.
        x0: Its column.
        cells_y: Rows of cells of the image.
        cells_x: Columns.
        high_y: Rows of pixels of the image.
        high_x: Columns.
        TILE_H: Rows of cells of the tile.
        TILE_W: Columns.
        ROW: Numbers of a row, at least TILE_W * SLOTS_X.
        SLOTS_Y: The most pixel rows of a cell.
        SLOTS_X: The most columns.
        EXACT: Whether every cell has SLOTS_Y x SLOTS_X pixels.

    Returns:
        For each index: row and column of the parent in the tile, row and column of the pixel in
        the image, and whether there is such a pixel.
    """
    row, column = index // ROW, index % ROW
    y, x = row // SLOTS_Y, column // SLOTS_X
    inside = (row < TILE_H * SLOTS_Y) & (column < TILE_W * SLOTS_X)
    if EXACT:
        # Compared as pixels, and not as cells: the compiler sees whole runs inside, and moves them
        # together.
        pixel_y, pixel_x = y0 * SLOTS_Y + row, x0 * SLOTS_X + column
        inside &= (pixel_y >= 0) & (pixel_y < high_y) & (pixel_x >= 0) & (pixel_x < high_x)
    else:
        cell_y, cell_x = y0 + y, x0 + x
        inside &= (cell_y >= 0) & (cell_y < cells_y) & (cell_x >= 0) & (cell_x < cells_x)
        cell_y, cell_x = tl.maximum(cell_y, 0), tl.maximum(cell_x, 0)
        pixel_y = first_child(cell_y, cells_y, high_y) + row % SLOTS_Y
        pixel_x = first_child(cell_x, cells_x, high_x) + column % SLOTS_X
        inside &= pixel_y < first_child(cell_y + 1, cells_y, high_y)
        inside &= pixel_x < first_child(cell_x + 1, cells_x, high_x)
    pixel_y, pixel_x = pixel_y.to(tl.int64), pixel_x.to(tl.int64)
    return y, x, pixel_y, pixel_x, inside


@triton.jit
def tile_halo(
    y0,
    x0,
    cells_y,
    cells_x,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    BORDER: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The cells of a tile and the halo around them.

    Returns:
        For each of BLOCK_N keys: row and column in the halo, row and column in the image (the
        nearest edge with border 'replicate'), and whether it is there to be read.
    """
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    WIDTH: tl.constexpr = TILE_W + 2 * RADIUS
    index = tl.arange(0, BLOCK_N)
    y, x = index // WIDTH, index % WIDTH
    cell_y, cell_x = y0 + y - RADIUS, x0 + x - RADIUS
    inside = y < TILE_H + 2 * RADIUS
    if BORDER == 'replicate':
        cell_y = tl.minimum(tl.maximum(cell_y, 0), cells_y - 1)
        cell_x = tl.minimum(tl.maximum(cell_x, 0), cells_x - 1)
    else:
        inside &= (cell_y >= 0) & (cell_y < cells_y) & (cell_x >= 0) & (cell_x < cells_x)
    return y, x, cell_y.to(tl.int64), cell_x.to(tl.int64), inside


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
def tile_windows(
    tile_y,
    tile_x,
    cells_y,
    cells_x,
    high_y,
    high_x,
    KERNEL_SIZE: tl.constexpr,
    BORDER: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    SLOTS_Y: tl.constexpr,
    SLOTS_X: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The queries of a tile, its keys, and the windows that join them.

    Returns:
        For each of BLOCK_M queries row and column in the image, and whether there is such a pixel;
        for each of BLOCK_N keys likewise, and whether it is there to be read; and (BLOCK_M,
        BLOCK_N) positions of the keys in the windows, and whether they are in them.
    """
    y0, x0 = tile_y * TILE_H, tile_x * TILE_W
    query_y, query_x, pixel_y, pixel_x, is_query = tile_pixels(
        tl.arange(0, BLOCK_M),
        y0,
        x0,
        cells_y,
        cells_x,
        high_y,
        high_x,
        TILE_H,
        TILE_W,
        TILE_W * SLOTS_X,
        SLOTS_Y,
        SLOTS_X,
        EXACT,
    )
    key_y, key_x, cell_y, cell_x, is_key = tile_halo(
        y0, x0, cells_y, cells_x, TILE_H, TILE_W, KERNEL_SIZE, BORDER, BLOCK_N
    )
    position, in_window = window_positions(query_y, query_x, key_y, key_x, KERNEL_SIZE)
    return pixel_y, pixel_x, is_query, cell_y, cell_x, is_key, position, in_window


@triton.jit
def load_rows(ptr, rows, inside, stride_c, start, channels, BLOCK_C: tl.constexpr):
    """Read BLOCK_C channels from ``start`` of the positions at offsets ``rows``; 0 outside."""
    channel = start + tl.arange(0, BLOCK_C)
    offsets = channel.to(tl.int64) * stride_c
    mask = inside[:, None] & (channel < channels)[None, :]
    return tl.load(ptr + rows[:, None] + offsets[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, rows, inside, stride_c, start, channels, values, BLOCK_C: tl.constexpr):
    """Write what `load_rows` reads, in the dtype of the tensor."""
    channel = start + tl.arange(0, BLOCK_C)
    offsets = channel.to(tl.int64) * stride_c
    mask = inside[:, None] & (channel < channels)[None, :]
    tl.store(ptr + rows[:, None] + offsets[None, :], values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, sums, PRECISION: tl.constexpr):
    """Sums + a b in float32; float32 operands in ``PRECISION``, 'ieee' or 'tf32'."""
    if INTERPRETED:
        # The interpreter would multiply the bit patterns of bfloat16.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def correlate(
    a_ptr,
    a_rows,
    a_inside,
    a_stride_c,
    b_ptr,
    b_rows,
    b_inside,
    b_stride_c,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Inner products (BLOCK_M, BLOCK_N) over all channels of two lists of positions."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, channels, BLOCK_C):
        a = load_rows(a_ptr, a_rows, a_inside, a_stride_c, start, channels, BLOCK_C)
        b = load_rows(b_ptr, b_rows, b_inside, b_stride_c, start, channels, BLOCK_C)
        sums = dot(a, tl.trans(b), sums, PRECISION)
    return sums


@triton.jit
def fit(rows, DTYPE: tl.constexpr, SCALED: tl.constexpr):
    """Cast the rows of a matrix to the dtype of a matrix product.

    With SCALED each row is divided by its largest magnitude, for a dtype whose range it may leave.

    Returns:
        The matrix, and the factor of each row.
    """
    if SCALED:
        scale = tl.max(tl.abs(rows), 1)
        scale = tl.where(scale > 0, scale, 1.0)
        rows = rows / scale[:, None]
    else:
        scale = tl.full((rows.shape[0],), 1.0, tl.float32)
    return rows.to(DTYPE), scale


@triton.jit
def gather(
    weights,
    scale,
    source_ptr,
    source_rows,
    source_inside,
    source_stride_c,
    target_ptr,
    target_rows,
    target_inside,
    target_stride_c,
    start,
    stop,
    channels,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write scale * (weights @ source), channels ``start`` to ``stop``, BLOCK_C at a time."""
    for c in range(start, stop, BLOCK_C):
        source = load_rows(
            source_ptr, source_rows, source_inside, source_stride_c, c, channels, BLOCK_C
        )
        sums = tl.zeros((weights.shape[0], BLOCK_C), tl.float32)
        target = dot(weights, source, sums, PRECISION) * scale[:, None]
        store_rows(
            target_ptr, target_rows, target_inside, target_stride_c, c, channels, target, BLOCK_C
        )
