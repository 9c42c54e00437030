"""Launching a kernel: its arguments, its grid, and the entry of its table that it runs with."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
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


def device_of(x: Tensor) -> Device:
    """Return what a launch on a tensor depends on of its device, or of the one recorded for."""
    return _recorder.device if _recorder else _device(x.device)


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
    """All that the sizes of a launch over tiles depend on."""

    table: Table
    kernel_size: int
    high: tuple[int, int]
    low: tuple[int, int]
    margin: int
    images: int  # times groups
    channels: int
    embed: int
    channels_last: bool


#: How a kernel may be launched: what the choice depends on, and a launch for each choice, of which
#: the first is the default.
Plan = tuple[object, tuple[Launch, ...]]


def plan_tiles(
    kernel: triton.JITFunction,
    request: _Request,
    dtype: torch.dtype,
    constants: dict[str, object],
    device: Device,
) -> Plan:
    """Plan a launch over all tiles of a low-resolution map.

    Args:
        kernel: The kernel.
        request: Its sizes.
        dtype: Of the maps.
        constants: The kernel's, without those of the tile.
        device: What it is for.
    """
    table, (height, width), (high_y, high_x) = request.table, request.low, request.high
    slots = (-(-high_y // height), -(-high_x // width))
    rows, columns = height + 2 * request.margin, width + 2 * request.margin
    problem = Problem(
        dtype=dtype,
        precision=str(constants['PRECISION']),
        channels_last=request.channels_last,
        kernel_size=request.kernel_size,
        slots=slots,
        exact=request.high == (slots[0] * height, slots[1] * width),
        channels=request.channels,
        embed=request.embed,
        extent=tuple(min(triton.next_power_of_2(x), tuning.MAX_EXTENT) for x in (rows, columns)),
        magnitude=(request.images * high_y * high_x).bit_length() // 2,
    )
    names = kernel.arg_names
    arguments = dict(cells_y=height, cells_x=width, high_y=high_y, high_x=high_x)

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
                wanted = PROGRAMS_PER_PROCESSOR * device.processors
                splits = min(whole, -(-wanted // programs))
            share = -(-whole // splits)
            splits = -(-whole // share)
            sizes |= dict(share=share * blocks['BLOCK_C'], splits=splits)
            programs *= splits
        return Launch(
            kernel,
            programs,
            arguments | sizes,
            constants | {name: size for name, size in blocks.items() if name in names},
            entry.num_warps,
            entry.num_stages,
        )

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
    pointers: dict[str, Tensor | None] | None = None,
    scalars: dict[str, float] | None = None,
    constants: dict[str, object] | None = None,
    margin: int = 0,
    channels_last: bool | None = None,
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
        pointers: Tensors that the kernel is given by where they begin, by name.
        scalars: Further arguments, by name.
        constants: Further constants, by name.
        margin: Rows and columns around the low-resolution map that have tiles as well.
        channels_last: Whether channels lie innermost in the maps that take the most time. Default:
            as in ``low``.
    """
    given = dict(channels=channels, groups=groups, embed=embed)
    request = _Request(
        table=table,
        kernel_size=kernel_size,
        high=high.shape[2:],
        low=low.shape[2:],
        margin=margin,
        images=low.shape[0] * groups,
        channels=channels,
        embed=embed,
        channels_last=low.stride(1) == 1 if channels_last is None else channels_last,
    )
    scalars = {name: x for name, x in given.items() if name in kernel.arg_names} | (scalars or {})
    run(kernel, plan_tiles, request, low, tensors, pointers or {}, scalars, constants or {})


class Fixed(NamedTuple):
    """A launch of which there is nothing to choose: programs, constants and warps of 32 threads."""

    programs: int
    blocks: tuple[tuple[str, int], ...]
    num_warps: int = 4


def plan_fixed(
    kernel: triton.JITFunction,
    request: Fixed,
    dtype: torch.dtype,
    constants: dict[str, object],
    device: Device,
) -> Plan:
    """Plan the launch that the request is."""
    given = {k: v for k, v in (constants | dict(request.blocks)).items() if k in kernel.arg_names}
    warps = request.num_warps * 32 // device.warp_size
    return None, (Launch(kernel, request.programs, {}, given, warps, 1),)


class _Call:
    """A launch with all but its tensors: what a call prepares is kept for those that repeat it.

    The preparation of a call, Triton's included, takes far longer than its kernel on a small map,
    and models repeat their calls.
    """

    def __init__(
        self,
        item: Launch,
        tensors: dict[str, Tensor | None],
        pointers: dict[str, Tensor | None],
        scalars: dict[str, object],
    ):
        self.kernel = item.kernel
        self.grid = (item.programs, 1, 1)
        self.options = dict(num_warps=item.num_warps, num_stages=item.num_stages)
        values = item.arguments | item.constants | scalars
        names = item.kernel.arg_names
        self.arguments = [values.get(name) for name in names]
        self.tensors = [
            (names.index(name), None if x is None else x.stride()) for name, x in tensors.items()
        ]
        self.pointers = [names.index(name) for name in pointers]
        self.compiled = None

    def run(
        self, tensors: dict[str, Tensor | None], pointers: dict[str, Tensor | None]
    ) -> None:
        """Launch it with these tensors, which lie in memory as those that it was prepared for."""
        arguments = self.arguments.copy()
        for (place, strides), x in zip(self.tensors, tensors.values(), strict=True):
            if x is not None:
                arguments[place] = Strided(x, *strides)
        for place, x in zip(self.pointers, pointers.values(), strict=True):
            arguments[place] = x
        if self.compiled is None:
            # The interpreter compiles nothing: every call of it comes here.
            self.compiled = self.kernel[self.grid](*arguments, **self.options)
        else:
            self.compiled[self.grid](*arguments)


#: So many calls are kept; a program with more sizes than that begins anew.
MAX_CALLS = 4096
_calls: dict[tuple, _Call] = {}


def _lies(x: Tensor | None) -> tuple | None:
    """Return what a compiled kernel supposes about a tensor."""
    return None if x is None else (x.shape, x.stride(), x.dtype, x.data_ptr() % 16)


def _starts(x: Tensor | None) -> tuple | None:
    """Return what a compiled kernel supposes about a pointer."""
    return None if x is None else (x.dtype, x.data_ptr() % 16)


def run(
    kernel: triton.JITFunction,
    plan: Callable[..., Plan],
    request: tuple,
    like: Tensor,
    tensors: dict[str, Tensor | None],
    pointers: dict[str, Tensor | None],
    scalars: dict[str, object],
    constants: dict[str, object],
) -> None:
    """Launch a kernel as planned, or in the fastest of several ways.

    Args:
        kernel: The kernel.
        plan: How it may be launched: from the kernel, the request, the dtype, the constants and the
            `Device`.
        request: What else the plan depends on.
        like: A tensor with the device, and the dtype of the matrix products.
        tensors: (N, C, H, W) each, by the name that the kernel has for the `Strided` tensor.
        pointers: Tensors that the kernel is given by where they begin, by name.
        scalars: Further arguments, by name, but for those that the plan gives.
        constants: Constants, by name, likewise.
    """
    device, dtype = like.device, like.dtype
    precision = float32_precision() if dtype == torch.float32 else 'ieee'
    if _recorder:
        constants = dict(PRECISION=precision, **constants)
        _, launches = plan(kernel, request, dtype, constants, device_of(like))
        for item in launches if _recorder.every_entry else launches[:1]:
            given = {k: x if x is None else Strided(x, *x.stride()) for k, x in tensors.items()}
            item = item._replace(arguments=item.arguments | scalars | given | pointers)
            _recorder.launches.append(item)
        return
    tuned = device.type == 'cuda' and tuning.autotuning(device)
    key = (
        kernel,
        request,
        device,
        precision,
        tuned,
        *scalars.values(),
        *constants.values(),
        *map(_lies, tensors.values()),
        *map(_starts, pointers.values()),
    )
    call = _calls.get(key)
    if call is not None:
        if device.type != 'cuda' or device.index == torch.cuda.current_device():
            call.run(tensors, pointers)
        else:
            with torch.cuda.device(device):
                call.run(tensors, pointers)
        return
    constants = dict(PRECISION=precision, **constants)
    problem, launches = plan(kernel, request, dtype, constants, device_of(like))
    with torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext():
        # While a CUDA graph is captured nothing can be timed.
        capturing = device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
        calls = [_Call(item, tensors, pointers, scalars) for item in launches]
        best = 0
        if tuned and len(launches) > 1:
            chosen = (kernel, device, problem, tuple(constants.items()))
            if chosen not in _chosen and not capturing:
                runs = [functools.partial(item.run, tensors, pointers) for item in calls]
                _chosen[chosen] = tuning.fastest(runs)
            best = _chosen.get(chosen, 0)
        calls[best].run(tensors, pointers)
    if not capturing:
        if len(_calls) >= MAX_CALLS:
            _calls.clear()
        _calls[key] = calls[best]
