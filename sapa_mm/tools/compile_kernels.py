"""Compile every Triton kernel ahead of time, for GPUs that need not be there, and judge the result.

Every entry of every tuning table is compiled for each target, in half precision with channels
innermost and outermost, and the defaults in further dtypes, window sizes and ratios. A kernel fails
that takes more shared memory than the device gives a program, or that is in half precision and has
no matrix instruction; a default also if it spills registers to memory more than once inside loops,
or more than a few times outside (which NVIDIA's assembler does by itself where one more program
then fits on a multiprocessor). What is not the default is timed before it is used, so there a spill
is no fault. Needs torch and triton.
"""

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..kernels import (
    affiliation,
    affiliation_backward,
    assembly,
    embedding,
    embedding_backward,
    flat,
    launch,
    similarity,
)
from .arguments import positive
from .output import markdown_table

EPS = 1e-6
# Spilling instructions that are allowed outside of loops.
MAX_PARKED = 8
# And inside of one: a value that is needed behind it.
MAX_PARKED_IN_LOOPS = 1
POINTERS = {torch.float16: '*fp16', torch.bfloat16: '*bf16', torch.float32: '*fp32'}
LAYOUTS = {'nchw': torch.contiguous_format, 'nhwc': torch.channels_last}


class Device(NamedTuple):
    """A target, and what its launches depend on."""

    target: GPUTarget
    limits: launch.Device


DEVICES = {
    'sm_80': Device(GPUTarget('cuda', 80, 32), launch.Device(108, 166_912)),
    'sm_86': Device(GPUTarget('cuda', 86, 32), launch.Device(84, 101_376)),
    'sm_89': Device(GPUTarget('cuda', 89, 32), launch.Device(128, 101_376)),
    'sm_90': Device(GPUTarget('cuda', 90, 32), launch.Device(132, 232_448)),
    'sm_120': Device(GPUTarget('cuda', 120, 32), launch.Device(170, 101_376)),
    'gfx942': Device(GPUTarget('hip', 'gfx942', 64), launch.Device(304, 65_536, 64)),
}


class Case(NamedTuple):
    """Sizes of a call, and whether all entries of the tables are compiled or the defaults alone."""

    dtype: torch.dtype = torch.float16
    layout: str = 'nhwc'
    kernel_size: int = 5
    ratio: int = 2
    embed: int = 32
    channels: int = 256
    groups: int = 1  # of the assembly
    size: tuple[int, int] = (64, 64)
    odd: int = 0  # rows and columns by which the high resolution falls short of the ratio
    precision: str = 'highest'
    border: str = 'zero'
    normalization: str = 'softmax'
    every_entry: bool = False


CASES: tuple[Case, ...] = (
    Case(every_entry=True),
    Case(layout='nchw', every_entry=True),
    Case(torch.bfloat16),
    Case(torch.float32),
    Case(torch.float32, 'nchw'),
    Case(torch.float32, precision='high'),
    # No stride is a multiple of 16, and some cells have fewer pixels.
    Case(layout='nchw', size=(63, 75), odd=1),
    Case(embed=256),
    Case(kernel_size=3, border='mask', normalization='softplus'),
    Case(kernel_size=3, border='replicate', normalization='none'),
    Case(kernel_size=7, normalization='sigmoid'),
    Case(kernel_size=9, layout='nchw', normalization='relu'),
    Case(kernel_size=3, ratio=1),
    Case(ratio=4, groups=4),
    Case(kernel_size=3, ratio=8),
    # Sizes of 1 are constants to the compiler.
    Case(size=(1, 1), embed=1, channels=1),
)


class Compiled(NamedTuple):
    """What is known of a compiled kernel."""

    device: str
    kernel: str
    case: str
    registers: int
    spills: int
    in_loops: int
    shared: int
    matrix: int
    faults: tuple[str, ...]


def launches(case: Case, device: Device) -> list[launch.Launch]:
    """Every launch, forward and backward, that the calls of a case lead to."""
    height, width = case.size
    high = (height * case.ratio - case.odd, width * case.ratio - case.odd)
    c, d = case.channels, case.embed

    def tensor(channels: int, size: tuple[int, int]) -> torch.Tensor:
        x = torch.empty((2, channels, *size), dtype=case.dtype, device='meta')
        return x.contiguous(memory_format=LAYOUTS[case.layout])

    query, key, value, out = (
        tensor(d, high),
        tensor(d, case.size),
        tensor(c, case.size),
        tensor(c, high),
    )
    weights = tensor(case.groups * case.kernel_size**2, high)
    options = (case.kernel_size, case.normalization, 1.0, case.border, EPS)
    torch.set_float32_matmul_precision(case.precision)
    with launch.record(device.limits, case.every_entry) as recorded:
        affiliation.forward(query, key, value, out, *options)
        affiliation_backward.backward(out, query, key, value, query, key, value, *options)
        # Window and ratio do not concern it.
        if case.kernel_size == 5 and case.ratio == 2:
            embeddings(case, value, out, query)
        if case.normalization == 'softmax':
            assembly.forward(weights, value, out, case.kernel_size, case.groups)
            assembly.backward(weights, out, value, case.kernel_size, case.groups)
            similarity.forward(out, value, weights, case.kernel_size, case.groups)
    return recorded


def embeddings(case: Case, value: torch.Tensor, guide: torch.Tensor, query: torch.Tensor) -> None:
    """Launch the embeddings of a case: of a guide, with a gate and without, and a LayerNorm alone.

    Args:
        case: The case.
        value: (N, C, H, W).
        guide: (N, C, Hg, Wg).
        query: (N, D, Hg, Wg).
    """
    c, d = case.channels, case.embed
    weight, bias, gamma, beta = (
        torch.empty(shape, device='meta') for shape in ((d, c), (d,), (c,), (c,))
    )
    statistics = torch.empty((2, len(guide), *guide.shape[2:]), device='meta')
    gate, addend = value.new_empty(2, 1, *case.size), value.new_empty(2, d, *case.size)
    parameters: dict[str, torch.Tensor | None] = dict(
        weight=weight, bias=bias, norm_weight=gamma, norm_bias=beta
    )
    low: dict[str, torch.Tensor | None] = dict(gate=gate, addend=addend)
    no_low = dict.fromkeys(low)
    norm_alone = parameters | dict(weight=None, bias=None)
    for inputs, out in (
        (parameters | low, query),
        (parameters | no_low, query),
        (norm_alone | no_low, guide),
    ):
        embedding.forward(guide, *inputs.values(), out, statistics, EPS)
        grads = dict(x=guide) | {name: x for name, x in inputs.items() if x is not None}
        embedding_backward.backward(out, guide, statistics, *inputs.values(), out, grads)


def source(item: launch.Launch, backend: str) -> ASTSource:
    """Give the compiler what it is given at a launch, specialized likewise."""
    constants: dict[tuple[int, ...], object] = {}
    hints: dict[tuple[int, ...], list[list]] = {}

    def kind(value: Any, path: tuple[int, ...], unspecialized: bool = False) -> Any:
        """Return the type of an argument or element, and put its constants and hints down."""
        if isinstance(value, tuple):
            return type(value)(*(kind(x, (*path, i)) for i, x in enumerate(value)))
        if isinstance(value, tl.constexpr):
            value = value.value
        elif isinstance(value, torch.Tensor):
            hints[path] = [['tt.divisibility', 16]]
            if backend == 'hip':
                # Of a tensor of less than 2 GiB, which lets the compiler use buffer instructions.
                hints[path].append(['tt.pointer_range', 32])
            return POINTERS[value.dtype]
        elif isinstance(value, float):
            return 'fp32'
        elif value is not None and (value != 1 or unspecialized):
            if value % 16 == 0 and not unspecialized:
                hints[path] = [['tt.divisibility', 16]]
            return 'i32' if abs(value) < 2**31 else 'i64'
        constants[path] = value
        return 'constexpr'

    signature: dict[str, Any] = {}
    for i, parameter in enumerate(item.kernel.params):
        if parameter.name in item.constants:
            constants[i,] = item.constants[parameter.name]
            signature[parameter.name] = 'constexpr'
        else:
            value = item.arguments[parameter.name]
            signature[parameter.name] = kind(value, (i,), parameter.do_not_specialize)
    return ASTSource(item.kernel, signature, constants, hints)


def number(pattern: str, text: str) -> int:
    """The number that a pattern's group finds in what a compiler printed."""
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f'expected {pattern} in what the compiler printed, got {text[:200]!r}')
    return int(found[1])


def inspect(compiled: triton.compiler.CompiledKernel, backend: str) -> tuple[int, int, int, int]:
    """Registers of a thread, spilling instructions, those in loops, and matrix instructions."""
    if backend == 'hip':
        text = compiled.asm['amdgcn']
        used, spilled = (
            number(rf'\.{name}:\s+(\d+)', text) for name in ('vgpr_count', 'vgpr_spill_count')
        )
        return used, spilled, spilled, len(re.findall(r'\bv_mfma_', text))
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / 'kernel.cubin'
        cubin.write_bytes(compiled.asm['cubin'])
        usage, sass = (
            subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True).stdout
            for option in ('--dump-resource-usage', '--dump-sass')
        )
    lines = [(int(at, 16), text) for at, text in re.findall(r'/\*([0-9a-f]{4,})\*/\s+(.*?);', sass)]
    jumps = [(int(to, 16), at) for at, text in lines for to in re.findall(r'BRA.* 0x(\w+)', text)]
    spills = [at for at, text in lines if re.search(r'\b(STL|LDL)\b', text)]
    in_loops = [at for at in spills if any(first <= at <= last for first, last in jumps)]
    matrix = len(re.findall(r'\b(HMMA|HGMMA|UTCHMMA)\b', sass))
    return number(r'REG:(\d+)', usage), len(spills), len(in_loops), matrix


def multiplies(item: launch.Launch) -> bool:
    """Return whether a kernel has products: not if it adds up, copies, or projects nothing."""
    if item.kernel in (
        affiliation_backward.affiliation_key_bwd_kernel,
        embedding_backward.embedding_cells_kernel,
        embedding_backward.embedding_parameters_kernel,
        flat.relay_kernel,
    ):
        return False
    return item.arguments.get('weight_ptr', True) is not None


def judge(device_name: str, case: Case, items: list[launch.Launch]) -> list[Compiled]:
    """Compile launches for a device and collect the figures and the faults."""
    device, results = DEVICES[device_name], []
    changed = [f'{k}={v}' for k, v in case._asdict().items() if v != Case._field_defaults[k]]
    label = ' '.join(changed).replace('torch.', '').replace('every_entry=True', '').strip()
    for item in items:
        options = dict(num_warps=item.num_warps, num_stages=item.num_stages)
        compiled = triton.compile(
            source(item, device.target.backend), target=device.target, options=options
        )
        registers, spills, in_loops, matrix = inspect(compiled, device.target.backend)
        shared = compiled.metadata.shared
        faults = []
        # What is timed before it is used may spill.
        if not item.choice and (in_loops > MAX_PARKED_IN_LOOPS or spills > MAX_PARKED):
            faults.append(f'{spills} spills, {in_loops} in loops')
        if shared > device.limits.shared_bytes:
            there = device.limits.shared_bytes
            faults.append(f'{shared} bytes of shared memory, {there} are there')
        if case.dtype.itemsize == 2 and not matrix and multiplies(item):
            faults.append('no matrix instruction')
        sizes = ''
        if 'tile' in item.arguments:
            constants: Any = item.arguments['tile']
            tile = launch.Tile(*(x.value for x in constants))
            sizes = f'TILE_H{tile.height} TILE_W{tile.width} M{tile.queries} N{tile.keys}'
        blocks = ' '.join(
            f'{k.removeprefix("BLOCK_")}{v}'
            for k, v in item.constants.items()
            if k.startswith('BLOCK')
        )
        kernel = f'{item.kernel.__name__} {sizes} {blocks} warps{item.num_warps}'
        figures = (registers, spills, in_loops, shared, matrix)
        results.append(Compiled(device_name, kernel, label, *figures, tuple(faults)))
    return results


def compile_all(devices: list[str], cases: tuple[Case, ...], jobs: int) -> list[Compiled]:
    """Compile all cases for all devices, ``jobs`` at a time, and show how far it is."""
    results = []
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        futures = [pool.submit(compile_case, name, case) for name in devices for case in cases]
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            results += future.result()
            print(f'\r{done}/{len(futures)} cases, {len(results)} kernels', end='', file=sys.stderr)
    print(file=sys.stderr)
    return sorted(results)


def compile_case(device_name: str, case: Case) -> list[Compiled]:
    """Compile what one case launches, each kernel once."""
    items = launches(case, DEVICES[device_name])
    seen, different = set(), []
    for item in items:
        tile = str(item.arguments.get('tile'))
        absent = tuple(k for k, v in item.arguments.items() if v is None)
        key = (item.kernel, tile, absent, *item.constants.items(), item.num_warps, item.num_stages)
        if key not in seen:
            seen.add(key)
            different.append(item)
    return judge(device_name, case, different)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the options, compile, print a table, and fail if a kernel does."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--devices', nargs='+', default=list(DEVICES), choices=list(DEVICES), help='targets'
    )
    parser.add_argument('--jobs', type=positive, default=os.cpu_count(), help='processes')
    parser.add_argument(
        '--defaults', action='store_true', help='compile the first entry of each table alone'
    )
    options = parser.parse_args(argv)
    if os.environ.get('TRITON_INTERPRET') == '1':
        parser.error('nothing is compiled where TRITON_INTERPRET=1 is set: unset it')
    cases = CASES
    if options.defaults:
        cases = tuple(case._replace(every_entry=False) for case in CASES)
    results = compile_all(options.devices, cases, options.jobs)
    head = [
        'device',
        'kernel',
        'case',
        'registers',
        'spills',
        'in loops',
        'shared',
        'matrix',
        'faults',
    ]
    rows = [list(map(str, (*r[:-1], ', '.join(r.faults)))) for r in results]
    print(markdown_table(head, rows))
    faulty = [r for r in results if r.faults]
    print(f'\n{len(results)} kernels compiled, {len(faulty)} with faults')
    return int(bool(faulty))
