"""Launching a kernel: its arguments, its grid, and the entry of its table that it runs with."""

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import tuning
from .tuning import Problem, Table

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

    def run(self) -> None:
        """Launch it on the current device."""
        self.kernel[(self.programs,)](
            **self.arguments,
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


def launch(
    kernel: triton.JITFunction,
    table: Table,
    high: Tensor,
    low: Tensor,
    *,
    kernel_size: int,
    tensors: dict[str, Tensor],
    values: dict[str, object],
    constants: dict[str, object] | None = None,
    margin: int = 0,
) -> None:
    """Launch a kernel over all tiles of a low-resolution map.

    Args:
        kernel: Its first arguments are pointer and strides of each of ``tensors``.
        table: The sizes it may have.
        high: A high-resolution map, (N, *, Hg, Wg).
        low: The low-resolution map that is read or written, (N, *, H, W).
        kernel_size: K.
        tensors: (N, C, H, W) each, by name.
        values: Further arguments; ``groups``, ``channels`` and ``embed`` are among them.
        constants: Further constants.
        margin: Rows and columns around the low-resolution map that have tiles as well.
    """
    (height, width), (high_y, high_x) = low.shape[2:], high.shape[2:]
    slots = (-(-high_y // height), -(-high_x // width))
    images = low.shape[0] * values.get('groups', 1)
    precision = float32_precision() if low.dtype == torch.float32 else 'ieee'
    problem = Problem(
        dtype=low.dtype,
        precision=precision,
        channels_last=low.stride(1) == 1,
        kernel_size=kernel_size,
        slots=slots,
        exact=(high_y, high_x) == (slots[0] * height, slots[1] * width),
        channels=values['channels'],
        embed=values.get('embed', 1),
        extent=tuple(
            min(triton.next_power_of_2(x + 2 * margin), tuning.MAX_EXTENT) for x in (height, width)
        ),
        magnitude=(images * high_y * high_x).bit_length() // 2,
    )
    arguments = dict(cells_y=height, cells_x=width, high_y=high_y, high_x=high_x, **values)
    for name, x in tensors.items():
        arguments[f'{name}_ptr'] = x
        arguments |= {f'{name}_stride_{dim}': x.stride(i) for i, dim in enumerate('nchw')}
    fixed = dict(
        KERNEL_SIZE=kernel_size,
        SLOTS_Y=slots[0],
        SLOTS_X=slots[1],
        EXACT=problem.exact,
        PRECISION=precision,
        **(constants or {}),
    )
    device = _recorder.device if _recorder else _device(low.device)

    def prepare(entry: tuning.Entry, blocks: dict[str, int]) -> Launch:
        tiles_y = -(-(height + 2 * margin) // blocks['TILE_H'])
        tiles_x = -(-(width + 2 * margin) // blocks['TILE_W'])
        programs = images * tiles_y * tiles_x
        sizes = dict(tiles_y=tiles_y, tiles_x=tiles_x)
        if 'splits' in kernel.arg_names:
            whole = -(-problem.channels // blocks['BLOCK_C'])
            splits = whole
            if not table.one_block:
                splits = min(whole, -(-PROGRAMS_PER_PROCESSOR * device.processors // programs))
            share = -(-whole // splits)
            splits = -(-whole // share)
            sizes |= dict(share=share * blocks['BLOCK_C'], splits=splits)
            programs *= splits
        known = {name: size for name, size in blocks.items() if name in kernel.arg_names}
        return Launch(
            kernel,
            programs,
            arguments | sizes,
            fixed | known,
            entry.num_warps,
            entry.num_stages,
        )

    found = tuning.candidates(table, problem, device.shared_bytes, device.warp_size)
    if _recorder:
        found = found if _recorder.every_entry else found[:1]
        _recorder.launches.extend(prepare(*candidate) for candidate in found)
        return
    with torch.cuda.device(low.device) if low.is_cuda else contextlib.nullcontext():
        best = 0
        if len(found) > 1 and tuning.autotuning(low.device):
            key = (kernel, low.device, problem, *fixed.values())
            if key not in _chosen:
                _chosen[key] = tuning.fastest([prepare(*candidate).run for candidate in found])
            best = _chosen[key]
        prepare(*found[best]).run()
