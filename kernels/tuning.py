"""How large the tiles of a kernel are: a small table for each kind of kernel, and the choice in it.

A table's first entry (for planes the first that is made for them) is the default: it fits every
supported device and is what runs without autotuning. With it the others are tried, once for each
kind of problem.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
from triton.compiler import CompilationError
from triton.runtime.errors import TritonError

#: The most values of a block of scores: 64 float32 registers a thread at 8 warps.
MAX_SCORES = 2**14
#: So many of them want a warp more, up to 8: 32 registers a thread.
SCORES_PER_WARP = 2**10
#: Tiles are not made smaller for maps with more rows or columns.
MAX_EXTENT = 16


class Problem(NamedTuple):
    """What the best entry of a table depends on."""

    dtype: torch.dtype
    precision: str  # of float32 products
    channels_last: bool
    kernel_size: int
    slots: tuple[int, int]  # the most pixel rows and columns of a cell
    exact: bool  # whether every cell has as many
    channels: int
    embed: int
    extent: tuple[int, int]  # rows and columns of cells, in powers of 2 up to `MAX_EXTENT`
    magnitude: int  # of the number of pixels: which power of 4

    @property
    def radius(self) -> int:
        """Cells that a window reaches beyond its own."""
        return self.kernel_size // 2


class Entry(NamedTuple):
    """One choice: about how many rows a tile has, channels of a block, warps, pipeline stages.

    Warps of 32 threads; where a device's have 64, half as many are launched.
    """

    rows: int
    block_c: int
    num_warps: int
    num_stages: int
    sectors: int = 0  # of 32 bytes that a row of pixels fills where maps are planes
    step: int = 0  # pixels that a program with cells of its own reads at a time; default: rows


def power_of_2(n: int) -> int:
    """The least that is at least ``n``, and 16, the least side of a matrix product."""
    return max(16, triton.next_power_of_2(n))


def _tiles(problem: Problem, cells: int) -> list[tuple[int, int]]:
    """Tiles (rows, columns) of at most so many cells, none of which could be wider."""
    height, width = (x if x < MAX_EXTENT else cells for x in problem.extent)
    return [(y, min(cells // y, width)) for y in range(1, min(cells, height) + 1)]


def pixel_blocks(problem: Problem, entry: Entry, max_scores: int = MAX_SCORES) -> dict[str, int]:
    """Blocks of the kernels whose programs own the pixels of a tile.

    Args:
        problem: The problem.
        entry: ``rows`` are the pixels of a tile.
        max_scores: The most values of a block of scores.

    Returns:
        The sizes, by the names of the kernel's constants.
    """
    (sy, sx), halo = problem.slots, 2 * problem.radius

    def block_n(tile: tuple[int, int]) -> int:
        return power_of_2((tile[0] + halo) * (tile[1] + halo))

    def work(tile: tuple[int, int]) -> tuple[float, float]:
        # Of the matrix units, then of the loads, per cell.
        cells = tile[0] * tile[1]
        return block_n(tile) / cells, (tile[0] + halo) * (tile[1] + halo) / cells

    least = power_of_2(sy * sx)
    block_m = max(entry.rows, least)
    while True:
        tiles = _tiles(problem, block_m // (sy * sx))
        limit = 2 * max_scores if entry.sectors else max_scores
        tiles = [tile for tile in tiles if block_m * block_n(tile) <= limit] or [(1, 1)]
        if entry.sectors:
            # As far as a tile is that large.
            least_x = 32 * entry.sectors // problem.dtype.itemsize
            tiles = [tile for tile in tiles if tile[1] * sx >= least_x] or tiles
        tile = min(tiles, key=work)
        if block_m == least or 2 * tile[0] * tile[1] * sy * sx >= block_m:
            break
        block_m //= 2  # of so many rows more than half would be empty
    blocks = dict(TILE_H=tile[0], TILE_W=tile[1], BLOCK_M=block_m, BLOCK_N=block_n(tile))
    return blocks | _channel_blocks(problem, entry)


def cell_blocks(problem: Problem, entry: Entry) -> dict[str, int]:
    """Blocks of the kernel whose programs own the cells of a tile and read the pixels around it.

    Args:
        problem: The problem.
        entry: ``rows`` are the pixels that are read at a time, and the cells of a tile at the
            ratio 2; at larger ones fewer, as each comes with more pixels.

    Returns:
        The sizes, by the names of the kernel's constants.
    """
    (sy, sx), halo = problem.slots, 2 * problem.radius

    def pixels(tile: tuple[int, int]) -> int:
        return (tile[0] + halo) * sy * triton.next_power_of_2((tile[1] + halo) * sx)

    cells = min(entry.rows, max(16, 4 * entry.rows // (sy * sx)))
    tile = min(_tiles(problem, cells), key=lambda t: (pixels(t) / (t[0] * t[1]), -t[0] * t[1]))
    return dict(
        TILE_H=tile[0],
        TILE_W=tile[1],
        ROW=triton.next_power_of_2((tile[1] + halo) * sx),
        BLOCK_M=entry.step or entry.rows,
        BLOCK_N=power_of_2(tile[0] * tile[1]),
        **_channel_blocks(problem, entry),
    )


def _channel_blocks(problem: Problem, entry: Entry) -> dict[str, int]:
    # Half as many of float32: a block takes the same bytes.
    limit = entry.block_c * 2 // problem.dtype.itemsize
    return dict(
        BLOCK_C=min(limit, power_of_2(problem.channels)),
        BLOCK_D=min(limit, 64, power_of_2(problem.embed)),
    )


class Table(NamedTuple):
    """The entries of a kind of kernel."""

    entries: tuple[Entry, ...]
    blocks: Callable[[Problem, Entry], dict[str, int]]
    one_block: bool = False  # whether a program works on one block of channels alone
    float32: tuple[Entry, ...] = ()  # instead, for products in full float32


#: Affiliation and assembly, forward.
FORWARD = Table(
    (
        Entry(64, 64, 4, 3),  # 4 x 4 cells at K = 5 and ratio 2: 64 queries by 64 keys exactly
        Entry(64, 64, 4, 2),  # less shared memory: a program more on a multiprocessor
        Entry(64, 64, 4, 2, sectors=1),  # planes (NCHW): 2 x 8 cells, whole sectors of a pixel row
        Entry(64, 64, 4, 3, sectors=1),
        Entry(64, 32, 4, 3, sectors=2),
        Entry(64, 64, 8, 2, sectors=1),
    ),
    pixel_blocks,
    # No matrix units here, and the operands lie in registers: short blocks of channels, and nothing
    # loaded ahead, or it spills.
    float32=(Entry(64, 32, 4, 1),),
)
#: Affiliation, backward, and similarity, forward: scores are the result, so registers are scarcer.
BACKWARD = Table(
    (
        Entry(64, 64, 4, 3),  # 4 warps wait less for each other than 8
        Entry(64, 64, 4, 2),
        Entry(64, 64, 8, 2),  # fewer registers a thread
    ),
    functools.partial(pixel_blocks, max_scores=MAX_SCORES // 4),
    float32=(Entry(32, 32, 4, 1),),  # as above, and half the scores
)
#: Assembly, backward.
TRANSPOSE = Table(
    (
        Entry(64, 64, 8, 2),  # 64 cells: the pixels around them are read about twice
        Entry(64, 128, 8, 2),  # the weights are read once for more channels; many registers
        Entry(64, 256, 8, 2),  # and once for all of an FPN's
        Entry(32, 64, 4, 2),  # more programs for small maps
    ),
    cell_blocks,
    one_block=True,
)
#: Affiliation, backward, of the value.
VALUE = Table(
    (
        Entry(32, 256, 4, 3),  # 32 cells by all channels of an FPN: the weights are made once
        Entry(32, 128, 4, 3, sectors=1),  # planes: fewer addresses
        Entry(64, 256, 4, 2, step=32),
        Entry(64, 128, 4, 2),
        Entry(32, 128, 4, 3, step=64),  # fewer, longer trips for small maps
    ),
    cell_blocks,
    one_block=True,
    float32=(Entry(64, 64, 8, 1),),
)


def shared_bytes(blocks: dict[str, int], itemsize: int, num_stages: int) -> int:
    """About how much shared memory a program takes: its blocks of channels and its weights.

    Args:
        blocks: Its sizes.
        itemsize: Bytes of a value.
        num_stages: How many blocks of channels are under way.
    """
    rows = blocks['BLOCK_M'] + blocks['BLOCK_N']
    channels = max(blocks['BLOCK_C'], blocks['BLOCK_D'])
    weights = blocks['BLOCK_M'] * blocks['BLOCK_N']
    return itemsize * (num_stages * rows * channels + weights)


@functools.cache
def candidates(
    table: Table, problem: Problem, shared: int, warp_size: int
) -> tuple[tuple[Entry, dict[str, int]], ...]:
    """The entries of a table that differ and fit, with their blocks; the default is the first.

    Args:
        table: The table.
        problem: The problem.
        shared: Bytes of shared memory of a program.
        warp_size: Threads of a warp.
    """
    found = {}
    full = problem.dtype == torch.float32 and problem.precision == 'ieee'
    entries = (full and table.float32) or table.entries
    if not problem.channels_last:
        entries = sorted(entries, key=lambda entry: not entry.sectors)
    for entry in entries:
        blocks = table.blocks(problem, entry)
        scores = 2 * SCORES_PER_WARP if entry.sectors else SCORES_PER_WARP
        warps = min(8, blocks['BLOCK_M'] * blocks['BLOCK_N'] // scores)
        warps = max(entry.num_warps, warps) * 32 // warp_size
        entry = entry._replace(num_warps=warps)
        options = (*blocks.values(), warps, entry.num_stages)
        if not found or shared_bytes(blocks, problem.dtype.itemsize, entry.num_stages) <= shared:
            found.setdefault(options, (entry, blocks))
    return tuple(found.values())


def autotuning(device: torch.device) -> bool:
    """Whether the best entry of a table is used on a device, and not the default.

    Not where ``SAPA_MM_AUTOTUNE=0`` is set or torch is told to be deterministic.
    """
    return (
        device.type == 'cuda'
        and os.environ.get('SAPA_MM_AUTOTUNE', '1') != '0'
        and not torch.are_deterministic_algorithms_enabled()
    )


def fastest(runs: list[Callable[[], None]]) -> int | None:
    """Which of several launches takes the least time, of those that the device can run; or None.

    Synchronizes the device. Takes a compilation and about 30 ms for each.
    """

    def measure(run: Callable[[], None]) -> float:
        try:
            return triton.testing.do_bench(run, warmup=5, rep=20, return_mode='median')
        except (TritonError, CompilationError, torch.OutOfMemoryError):
            return float('inf')

    times = [measure(run) for run in runs]
    return times.index(min(times)) if min(times) < float('inf') else None
