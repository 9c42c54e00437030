"""The blocks of the embedding's kernels, and how they are launched over all pixels of a map."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import tuning
from .flat import is_wide
from .launch import Constants, Device, Launch, Plan, run

#: No kernel is compiled anew for these.
UNSPECIALIZED = ('cells_y', 'cells_x', 'high_y', 'high_x', 'tiles', 'images', 'parts')


class Entry(NamedTuple):
    """One choice of blocks.

    Attributes:
        pixels: How many a program has at a time.
        channels: How many channels of them, or 0 for all.
        num_warps: Warps of 32 threads.
        num_stages: Pipeline stages.
        programs: How many there are at most for each processor.
    """

    pixels: int
    channels: int
    num_warps: int
    num_stages: int
    programs: int


class Entries(NamedTuple):
    """The choices of a kernel, of which the first is the default: it spills on no supported GPU.

    Attributes:
        rows: For maps with channels innermost.
        planes: For others.
        first: Tried before the rows' on NVIDIA's GPUs for projections of 16 bits of a map whose
            channels are one block, to an embedding that is one.
    """

    rows: tuple[Entry, ...]
    planes: tuple[Entry, ...]
    first: tuple[Entry, ...] = ()


FORWARD = Entries(
    rows=(
        Entry(16, 0, 8, 2, 8),
        Entry(32, 0, 4, 2, 4),
        Entry(64, 0, 8, 2, 2),
    ),
    planes=(
        Entry(16, 0, 8, 2, 8),
        Entry(64, 0, 8, 2, 2),  # 64 pixels of a plane are 128 bytes
        Entry(64, 0, 4, 2, 3),
    ),
    first=(
        Entry(64, 0, 4, 3, 2),
        Entry(64, 0, 4, 2, 3),  # a program more for a block less that is under way
    ),
)
#: Of the map's gradient: two maps lie in registers.
MAP = Entries(
    rows=(
        Entry(16, 0, 4, 2, 8),
        Entry(64, 0, 4, 3, 2),
        Entry(32, 0, 4, 3, 4),
    ),
    planes=(
        Entry(16, 0, 8, 2, 8),
        Entry(64, 0, 8, 2, 2),
        Entry(64, 0, 4, 2, 3),
        Entry(32, 0, 4, 3, 4),
    ),
)
#: Of the sums for the parameters.
SUMS = Entries(
    rows=(
        Entry(16, 0, 4, 2, 1),
        Entry(64, 0, 4, 3, 1),
        Entry(64, 0, 4, 2, 1),
    ),
    planes=(
        Entry(16, 0, 4, 2, 1),
        Entry(64, 0, 4, 3, 1),
        Entry(64, 0, 4, 2, 1),
    ),
    first=(Entry(64, 0, 4, 2, 1),),
)
#: All channels of a program's pixels are held at once up to this size, and else so many at a time.
MAX_TILE_BYTES = 2**15
BLOCK_C = 128
#: Sums over all pixels are made in parts: so many channels by up to 64 of the embedding, by about
#: so many programs in all, each of at least so many pixels.
PARTS_BLOCK_C = 128
PARTS_PER_PROCESSOR = 1
PART_PIXELS = 512


def contiguous(x: Tensor | None) -> Tensor | None:
    """Return a parameter as the kernels read it."""
    return None if x is None else x.contiguous()


class _Request(NamedTuple):
    """All that the blocks of a kernel over pixels depend on."""

    entries: Entries
    images: int
    pixels: int  # of an image
    channels: int
    embed: int
    channels_last: bool
    projected: bool


def plan(
    kernel: triton.JITFunction,
    request: _Request,
    dtype: torch.dtype,
    constants: Constants,
    device: Device,
) -> Plan:
    """Plan a launch over all pixels of a map.

    Args:
        kernel: The kernel.
        request: The sizes.
        dtype: Of the map.
        constants: Those of `run`.
        device: What it is for.
    """
    names = kernel.arg_names
    itemsize = dtype.itemsize
    problem = tuning.Problem(
        dtype=dtype,
        precision=str(dict(constants)['PRECISION']),
        channels_last=request.channels_last,
        kernel_size=1,
        slots=(1, 1),
        exact=True,
        channels=request.channels,
        embed=request.embed if request.projected else 0,
        extent=(tuning.MAX_EXTENT, tuning.MAX_EXTENT),
        magnitude=(request.images * request.pixels).bit_length() // 2,
    )
    crowds: dict[int, dict[tuple, Launch]] = {}  # by the bytes that are not there
    entries = request.entries.rows if request.channels_last else request.entries.planes
    whole = tuning.power_of_2(request.channels)
    one = whole * 64 * itemsize <= MAX_TILE_BYTES and request.embed <= 64
    if one and request.projected and request.channels_last and device.warp_size == 32:
        entries = request.entries.first + entries if itemsize == 2 else entries
    for entry in entries:
        block_c = min(whole, entry.channels or whole)
        if block_c * entry.pixels * itemsize > MAX_TILE_BYTES:
            block_c = BLOCK_C
        blocks = dict(
            ONE_BLOCK=block_c >= request.channels,
            BLOCK_P=entry.pixels,
            BLOCK_C=block_c,
            BLOCK_D=tuning.power_of_2(request.embed) if request.embed <= 64 else 32,
        )
        blocks['ONE_D'] = blocks['BLOCK_D'] >= request.embed
        # Blocks of pixels that are under way, and the weight.
        rows = max(entry.num_stages - 1, 1) * entry.pixels + blocks['BLOCK_D']
        crowded = max(0, rows * block_c * itemsize - device.shared_bytes)
        tiles = -(-request.pixels // entry.pixels)
        programs = min(request.images * tiles, entry.programs * device.processors)
        arguments: dict[str, object] = dict(tiles=tiles)
        if 'parts' in names:
            blocks['BLOCK_C'] = min(block_c, PARTS_BLOCK_C)
            chunks = -(-request.channels // blocks['BLOCK_C'])
            if request.projected:
                chunks *= -(-request.embed // blocks['BLOCK_D'])
            # The more blocks of sums there are, the fewer parts.
            arguments['parts'] = parts_of(request, device)
            programs = arguments['parts'] * chunks
        warps = entry.num_warps * 32 // device.warp_size
        given = {k: v for k, v in (*constants, *blocks.items()) if k in names}
        item = Launch(kernel, programs, arguments, given, warps, entry.num_stages)
        found = crowds.setdefault(crowded, {})
        found.setdefault((*blocks.values(), programs, warps, entry.num_stages), item)
    # Where nothing fits by this estimate, what lacks the least room is left.
    return problem, tuple(crowds[min(crowds)].values())


def parts_of(request: _Request, device: Device) -> int:
    """Return among how many programs the pixels are shared out that sum over all of them."""
    least = -(-request.images * request.pixels // PART_PIXELS)
    return max(1, min(PARTS_PER_PROCESSOR * device.processors, least))


def request_of(entries: Entries, x: Tensor, embed: int, projected: bool) -> _Request:
    """Return the request of a call, from its map."""
    n, c, height, width = x.shape
    return _Request(entries, n, height * width, c, embed, x.stride(1) == 1, projected)


def start(
    kernel: triton.JITFunction,
    entries: Entries,
    x: Tensor,
    embed: int,
    low: Tensor | None,
    *,
    tensors: dict[str, Tensor | None],
    pointers: dict[str, Tensor | None],
    scalars: dict[str, object] | None = None,
) -> None:
    """Launch a kernel over all pixels of a map.

    Args:
        kernel: The kernel.
        entries: The blocks that it may have.
        x: The map (N, C, H, W).
        embed: D.
        low: Gate or addend (N, *, h, w), if there is one.
        tensors: As `launch.run` has them.
        pointers: Likewise.
        scalars: Likewise.
    """
    n, c, height, width = x.shape
    cells_y, cells_x = (height, width) if low is None else low.shape[2:]

    def plan_it(constants: Constants, device: Device) -> Plan:
        request = request_of(entries, x, embed, pointers['weight_ptr'] is not None)
        wide = is_wide(*tensors.values())
        return plan(kernel, request, x.dtype, (*constants, ('WIDE', wide)), device)

    run(
        kernel,
        plan_it,
        (),
        x,
        tensors,
        pointers,
        dict(
            scalars or {},
            images=n,
            channels=c,
            embed=embed,
            high_y=height,
            high_x=width,
            cells_y=cells_y,
            cells_x=cells_x,
        ),
        {},
    )
