"""Launching a kernel: its arguments, its grid, and the entry of its table that it runs with."""

import contextlib
import functools
from collections.abc import Callable, Iterator
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
    choice: int = 0  # which of a plan's it is: 0 for the default


class _Recorder(NamedTuple):
    launches: list[Launch]
    device: Device
    every_entry: bool


_recorder: _Recorder | None = None


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


class _Stub:
    """Stands for a compiled kernel that does nothing."""

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return lambda *arguments: None


_stub: _Stub | None = None


def is_stubbed() -> bool:
    """Return whether launches do nothing."""
    return _stub is not None


@contextlib.contextmanager
def stubbed() -> Iterator[None]:
    """Let launches on CPU tensors do all but launch: what is left is the time of the host.

    Not for several threads.
    """
    global _stub
    _stub = _Stub()
    try:
        yield
    finally:
        _stub = None
        _calls.clear()


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


def precision_of(dtype: torch.dtype) -> str:
    """What products of a dtype are computed in: 'ieee', or 'tf32', which is for float32 alone."""
    return float32_precision() if dtype == torch.float32 else 'ieee'


def float32_precision() -> str:
    """What a product of float32 matrices is computed in, as torch's own: 'ieee' or 'tf32'."""
    matmul = torch.backends.cuda.matmul
    # The older setting cannot be read once the newer one, of torch 2.9, has been used.
    if hasattr(matmul, 'fp32_precision'):
        allowed = matmul.fp32_precision == 'tf32'
    else:
        allowed = matmul.allow_tf32
    return 'tf32' if allowed and torch.version.hip is None else 'ieee'


class Tiles(NamedTuple):
    """The tiles of a launch over a low-resolution map, and all that their sizes depend on.

    Attributes:
        table: The sizes they may have.
        kernel_size: K.
        high: (Hg, Wg).
        low: (H, W).
        images: N, times the groups of channels that have programs of their own.
        channels: Of one group.
        embed: Channels of query and key.
        channels_last: Whether channels lie innermost in the maps that take the most time.
        margin: Rows and columns around the low-resolution map that have tiles as well.
    """

    table: Table
    kernel_size: int
    high: tuple[int, int]
    low: tuple[int, int]
    images: int
    channels: int
    embed: int = 1
    channels_last: bool = True
    margin: int = 0


Constants = tuple[tuple[str, object], ...]
#: How a kernel may be launched: what the choice depends on, and a launch for each choice, of which
#: the first is the default.
Plan = tuple[object, tuple[Launch, ...]]


@functools.lru_cache(maxsize=4096)
def plan_tiles(
    kernel: triton.JITFunction,
    request: Tiles,
    dtype: torch.dtype,
    constants: Constants,
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
    given = dict(constants)
    table, (height, width), (high_y, high_x) = request.table, request.low, request.high
    slots = (-(-high_y // height), -(-high_x // width))
    rows, columns = height + 2 * request.margin, width + 2 * request.margin
    problem = Problem(
        dtype=dtype,
        precision=str(given['PRECISION']),
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
        blocks = blocks | dict(ONE_D=request.embed <= blocks['BLOCK_D'])
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
            given | {name: size for name, size in blocks.items() if name in names},
            entry.num_warps,
            entry.num_stages,
        )

    found = tuning.candidates(table, problem, device.shared_bytes, device.warp_size)
    return problem, tuple(prepare(*candidate) for candidate in found)


def tiles_of(
    table: Table, high: Tensor, low: Tensor, kernel_size: int, channels: int, groups: int = 1
) -> Tiles:
    """Return the tiles of a call, from a high- and a low-resolution map (N, *, H, W) of it."""
    return Tiles(
        table=table,
        kernel_size=kernel_size,
        high=high.shape[2:],
        low=low.shape[2:],
        images=low.shape[0] * groups,
        channels=channels,
        channels_last=low.stride(1) == 1,
    )


def most_rows(
    kernel: triton.JITFunction, tiles: Tiles, like: Tensor, constants: dict[str, object]
) -> int:
    """Return for how many keys of tiles a launch needs scratch memory, however it is launched."""
    given = (('PRECISION', precision_of(like.dtype)), *constants.items())
    _, launches = plan_tiles(kernel, tiles, like.dtype, given, device_of(like))
    return max(item.programs * item.arguments['tile'].keys.value for item in launches)


def plan_fixed(
    kernel: triton.JITFunction,
    programs: int,
    blocks: dict[str, int],
    constants: Constants,
    device: Device,
) -> Plan:
    """Plan a launch of which there is nothing to choose.

    Args:
        kernel: The kernel.
        programs: How many.
        blocks: Its constants.
        constants: Those of `run`.
        device: What it is for.
    """
    given = {k: v for k, v in (*constants, *blocks.items()) if k in kernel.arg_names}
    return None, (Launch(kernel, programs, {}, given, 4 * 32 // device.warp_size, 1),)


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
        self.item = item
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

    def run(self, tensors: dict[str, Tensor | None], pointers: dict[str, Tensor | None]) -> None:
        """Launch it with these tensors, which lie in memory as those that it was prepared for."""
        arguments = self.arguments.copy()
        for (place, strides), x in zip(self.tensors, tensors.values(), strict=True):
            if x is not None:
                arguments[place] = Strided(x, *strides)
        for place, x in zip(self.pointers, pointers.values(), strict=True):
            arguments[place] = x
        if self.compiled is None:
            self.compiled = _stub
        if self.compiled is None:
            # The interpreter compiles nothing: every call of it comes here.
            self.compiled = self.kernel[self.grid](*arguments, **self.options)
        else:
            self.compiled[self.grid](*arguments)


#: So many calls are kept; a program with more sizes than that begins anew.
MAX_CALLS = 4096
_calls: dict[tuple, _Call] = {}
_chosen: dict[tuple, int] = {}


def run(
    kernel: triton.JITFunction,
    plan: Callable[[Constants, Device], Plan],
    given: tuple,
    like: Tensor,
    tensors: dict[str, Tensor | None],
    pointers: dict[str, Tensor | None],
    scalars: dict[str, object],
    constants: dict[str, object],
) -> Launch:
    """Launch a kernel as planned, or in the fastest of several ways.

    Args:
        kernel: The kernel.
        plan: How it may be launched, from all constants and the `Device`; asked once for all calls
            that are alike in everything below.
        given: What it depends on besides.
        like: A tensor with the device, and the dtype of the matrix products.
        tensors: (N, C, H, W) each, by the name that the kernel has for the `Strided` tensor.
        pointers: Tensors that the kernel is given by where they begin, by name.
        scalars: Further arguments, by name, but for those that the plan gives.
        constants: Constants, by name, likewise.

    Returns:
        How it was launched.
    """
    device, dtype = like.device, like.dtype
    precision = precision_of(dtype)
    if _recorder:
        _, launches = plan((('PRECISION', precision), *constants.items()), device_of(like))
        for choice, item in enumerate(launches if _recorder.every_entry else launches[:1]):
            strided = {k: x if x is None else Strided(x, *x.stride()) for k, x in tensors.items()}
            arguments = item.arguments | scalars | strided | pointers
            _recorder.launches.append(item._replace(arguments=arguments, choice=choice))
        return launches[0]
    tuned = device.type == 'cuda' and tuning.autotuning(device)
    key = (
        id(kernel),
        given,
        device,
        precision,
        tuned,
        *scalars.values(),
        *constants.values(),
        *[
            None if x is None else (x.shape, x.stride(), x.dtype, x.data_ptr() % 16 == 0)
            for x in tensors.values()
        ],
        *[None if x is None else (x.dtype, x.data_ptr() % 16 == 0) for x in pointers.values()],
    )
    call = _calls.get(key)
    if call is not None:
        if device.type != 'cuda' or device.index == torch.cuda.current_device():
            call.run(tensors, pointers)
        else:
            with torch.cuda.device(device):
                call.run(tensors, pointers)
        return call.item
    options = (('PRECISION', precision), *constants.items())
    problem, launches = plan(options, device_of(like))
    with torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext():
        # While a CUDA graph is captured nothing can be timed.
        capturing = device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
        calls = [_Call(item, tensors, pointers, scalars) for item in launches]
        best = 0
        if tuned and len(launches) > 1:
            chosen = (kernel, device, problem, options)
            if chosen not in _chosen and not capturing:
                runs = [functools.partial(item.run, tensors, pointers) for item in calls]
                known = choices.of_device(device)
                _chosen[chosen] = known.choose(kernel.__name__, options, problem, runs)
            best = _chosen.get(chosen, 0)
        calls[best].run(tensors, pointers)
    if not capturing:
        if len(_calls) >= MAX_CALLS:
            _calls.clear()
        _calls[key] = calls[best]
    return launches[best]
