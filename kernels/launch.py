"""Launching a kernel: its arguments, its grid, and the entry of its table that it runs with."""

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import choices, tuning
from .tuning import Problem, Table
from .window import Strided, Tile

#: Where few tiles would leave multiprocessors idle, the channels of a tile are shared out among
#: programs until there are this many for each.
PROGRAMS_PER_PROCESSOR = 2


class Device(NamedTuple):
    """What a launch depends on."""

    processors: int  # multiprocessors
    shared_bytes: int  # of shared memory, of a program
    warp_size: int = 32  # threads


#: The interpreter's: few processors, so that small tests meet tiles whose channels are shared out
#: and others, and the memory of the smallest device.
INTERPRETER = Device(processors=4, shared_bytes=2**16)


class Launch(NamedTuple):
    """A kernel with all that it is given."""

    kernel: triton.JITFunction
    programs: int
    arguments: dict[str, object]
    constants: dict[str, object]
    num_warps: int
    num_stages: int

    def run(self, **arguments: object) -> None:
        """Launch it on the current device, with further arguments."""
        self.kernel[(self.programs,)](
            **self.arguments,
            **arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
        )


class _Recorder(NamedTuple):
    launches: list[Launch]
    device: Device
    every_entry: bool


_recorder: _Recorder | None = None
_chosen: dict[tuple, int] = {}


@contextlib.contextmanager
def record(device: Device, every_entry: bool = False) -> Iterator[list[Launch]]:
    """Collect the launches inside the context, and run none.

    Works with tensors on the meta device. Not for several threads.

    Args:
        device: What the launches are for.
        every_entry: Collect a launch for every entry of a table that fits. Default: the default.
    """
    global _recorder
    _recorder = _Recorder([], device, every_entry)
    try:
        yield _recorder.launches
    finally:
        _recorder = None


@functools.cache
def _device(device: torch.device) -> Device:
    if device.type != 'cuda':
        return INTERPRETER
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return Device(
        properties['multiprocessor_count'],
        properties['max_shared_mem'],
        properties['warpSize'],
    )


def float32_precision() -> str:
    """What a product of float32 matrices is computed in, as torch's own: 'ieee' or 'tf32'."""
    matmul = torch.backends.cuda.matmul
    # The older setting cannot be read once the newer one, of torch 2.9, has been used.
    if hasattr(matmul, 'fp32_precision'):
        allowed = matmul.fp32_precision == 'tf32'
    else:
        allowed = matmul.allow_tf32
    return 'tf32' if allowed and torch.version.hip is None else 'ieee'


class _Request(NamedTuple):
    """All that the sizes of a launch depend on."""

    kernel: triton.JITFunction
    table: Table
    device: Device
    dtype: torch.dtype
    precision: str
    kernel_size: int
    high: tuple[int, int]
    low: tuple[int, int]
    margin: int
    images: int  # times groups
    channels: int
    embed: int
    channels_last: bool
    constants: tuple[tuple[str, object], ...]


# A call's preparation takes longer than its kernel on a small map, and models repeat their calls.
@functools.lru_cache(maxsize=4096)
def _plan(request: _Request) -> tuple[Problem, tuple[Launch, ...]]:
    """The kind of problem that a request is, and a launch for each entry that may be best."""
    table, (height, width), (high_y, high_x) = request.table, request.low, request.high
    slots = (-(-high_y // height), -(-high_x // width))
    rows, columns = height + 2 * request.margin, width + 2 * request.margin
    problem = Problem(
        dtype=request.dtype,
        precision=request.precision,
        channels_last=request.channels_last,
        kernel_size=request.kernel_size,
        slots=slots,
        exact=request.high == (slots[0] * height, slots[1] * width),
        channels=request.channels,
        embed=request.embed,
        extent=tuple(min(triton.next_power_of_2(x), tuning.MAX_EXTENT) for x in (rows, columns)),
        magnitude=(request.images * high_y * high_x).bit_length() // 2,
    )
    names = request.kernel.arg_names
    arguments = dict(cells_y=height, cells_x=width, high_y=high_y, high_x=high_x)
    constants = dict(PRECISION=request.precision, **dict(request.constants))

    def prepare(entry: tuning.Entry, blocks: dict[str, int]) -> Launch:
        tiles_y, tiles_x = -(-rows // blocks['TILE_H']), -(-columns // blocks['TILE_W'])
        programs = request.images * tiles_y * tiles_x
        tile = dict(
            height=blocks['TILE_H'],
            width=blocks['TILE_W'],
            slots_y=slots[0],
            slots_x=slots[1],
            exact=problem.exact,
            kernel_size=request.kernel_size,
            queries=blocks['BLOCK_M'],
            keys=blocks['BLOCK_N'],
        )
        tile = Tile(**{name: tl.constexpr(x) for name, x in tile.items()})
        sizes = dict(tiles_y=tiles_y, tiles_x=tiles_x, tile=tile)
        if 'splits' in names:
            splits = whole = -(-request.channels // blocks['BLOCK_C'])
            if not table.one_block:
                wanted = PROGRAMS_PER_PROCESSOR * request.device.processors
                splits = min(whole, -(-wanted // programs))
            share = -(-whole // splits)
            splits = -(-whole // share)
            sizes |= dict(share=share * blocks['BLOCK_C'], splits=splits)
            programs *= splits
        return Launch(
            request.kernel,
            programs,
            arguments | sizes,
            constants | {name: size for name, size in blocks.items() if name in names},
            entry.num_warps,
            entry.num_stages,
        )

    device = request.device
    found = tuning.candidates(table, problem, device.shared_bytes, device.warp_size)
    return problem, tuple(prepare(*candidate) for candidate in found)


def launch(
    kernel: triton.JITFunction,
    table: Table,
    high: Tensor,
    low: Tensor,
    *,
    kernel_size: int,
    channels: int,
    groups: int = 1,
    embed: int = 1,
    tensors: dict[str, Tensor],
    values: dict[str, object],
    constants: dict[str, object] | None = None,
    margin: int = 0,
) -> None:
    """Launch a kernel over all tiles of a low-resolution map.

    Args:
        kernel: The kernel.
        table: The sizes it may have.
        high: A high-resolution map, (N, *, Hg, Wg).
        low: The low-resolution map that is read or written, (N, *, H, W).
        kernel_size: K.
        channels: Of one group.
        groups: Groups, each with programs of its own.
        embed: Channels of query and key.
        tensors: (N, C, H, W) each, by the name that the kernel has for the `Strided` tensor.
        values: Further arguments, by name.
        constants: Further constants, by name.
        margin: Rows and columns around the low-resolution map that have tiles as well.
    """
    constants = tuple((constants or {}).items())
    problem, launches = _plan(
        _Request(
            kernel=kernel,
            table=table,
            device=_recorder.device if _recorder else _device(low.device),
            dtype=low.dtype,
            precision=float32_precision() if low.dtype == torch.float32 else 'ieee',
            kernel_size=kernel_size,
            high=tuple(high.shape[2:]),
            low=tuple(low.shape[2:]),
            margin=margin,
            images=low.shape[0] * groups,
            channels=channels,
            embed=embed,
            channels_last=low.stride(1) == 1,
            constants=constants,
        )
    )
    given = dict(channels=channels, groups=groups, embed=embed)
    arguments = {name: x for name, x in given.items() if name in kernel.arg_names}
    arguments |= {name: Strided(x, *x.stride()) for name, x in tensors.items()} | values
    if _recorder:
        for item in launches if _recorder.every_entry else launches[:1]:
            item = item._replace(arguments=item.arguments | arguments)
            _recorder.launches.append(item)
        return
    with torch.cuda.device(low.device) if low.is_cuda else contextlib.nullcontext():
        best = 0
        if len(launches) > 1 and tuning.autotuning(low.device):
            key = (kernel, low.device, problem, constants)
            # While a CUDA graph is captured nothing can be timed.
            if key not in _chosen and not torch.cuda.is_current_stream_capturing():
                runs = [functools.partial(item.run, **arguments) for item in launches]
                chosen = choices.of_device(low.device)
                _chosen[key] = chosen.choose(kernel.__name__, constants, problem, runs)
            best = _chosen.get(key, 0)
        launches[best].run(**arguments)
