#!/usr/bin/env python
"""Time point affiliation against the unfold formula and bilinear interpolation.

Every candidate is checked against the float64 reference first, and what fails is not timed. All
candidates of a shape take turns in one process, so that ratios hold where the machine's speed
drifts: a ratio is the median over the rounds of that round's ratio, a time the median of the
rounds. Every call gets its large tensors fresh from the system, so that no candidate profits from
the pages of the one before. Extra memory is the peak that a call allocates through torch, less its
results. Needs torch alone.
"""

import argparse
import contextlib
import ctypes
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler's start and stop are no news

import torch
from torch import Tensor
from torch.nn import functional as F

import sapa_mm
from sapa_mm.ops import point_affiliation, reference

# Allowed max|error| / max|reference| before a candidate is timed.
TOLERANCE = {'float32': 1e-5, 'float16': 4e-3, 'bfloat16': 3e-2}
LAYOUTS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}
CHECKED_CHANNELS = 16
# glibc's name for the size from which memory comes from the system and goes back to it.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 2**24
PASSES = ('forward', 'forward+backward')

Candidate = Callable[[Tensor, Tensor, Tensor], Tensor]


def unfold_einsum(query: Tensor, key: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """The usual formula: K*K copies of key and value, and two einsums. Integer ratios only."""
    (n, d, high_h, high_w), (_, c, h, w) = query.shape, value.shape
    window, padding = kernel_size**2, kernel_size // 2
    keys = F.unfold(key, kernel_size, padding=padding).view(n, d, window, h, w)
    cells = query.reshape(n, d, h, high_h // h, w, high_w // w)
    weights = torch.einsum('ndhawb,ndphw->nphawb', cells, keys).softmax(1)
    values = F.unfold(value, kernel_size, padding=padding).view(n, c, window, h, w)
    out = torch.einsum('nphawb,ncphw->nchawb', weights, values)
    return out.reshape(n, c, high_h, high_w)


def candidates(kernel_size: int) -> dict[str, Candidate]:
    """What is compared, by name; the first is ours."""

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return point_affiliation(query, key, value, kernel_size=kernel_size)

    def unfold(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return unfold_einsum(query, key, value, kernel_size)

    def bilinear(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.interpolate(value, query.shape[2:], mode='bilinear', align_corners=False)

    return {'sapa_mm': ours, 'unfold+einsum': unfold, 'bilinear': bilinear}


def start_alike() -> None:
    """Let every call get its large tensors fresh from the system, whatever ran before it."""
    if sys.platform == 'linux':
        with contextlib.suppress(OSError, AttributeError):  # C libraries other than glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
            libc.malloc_trim(0)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def run(function: Candidate, inputs: list[Tensor], grad: Tensor | None) -> list[Tensor]:
    """One call, forward or (with ``grad``) forward and backward; its results."""
    if grad is None:
        with torch.no_grad():
            return [function(*inputs)]
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    grads = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    return [out.detach(), *(g for g in grads if g is not None)]


def extra_memory(function: Candidate, inputs: list[Tensor], grad: Tensor | None) -> int:
    """Peak bytes that a call allocates beyond its results."""
    device = inputs[0].device
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        results = run(function, inputs, grad)
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with torch.profiler.profile(profile_memory=True) as profile:
            results = run(function, inputs, grad)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
        level = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            level += event.nbytes()
            peak = max(peak, level)
    return peak - sum(x.nbytes for x in results)


def check(
    name: str, function: Candidate, inputs: list[Tensor], grad: Tensor, kernel_size: int
) -> float:
    """Worst max|error| / max|reference| of the result and the gradients in the first channels.

    The gradient is zero elsewhere, so that the float64 reference fits into memory.

    Raises:
        SystemExit: Beyond the tolerance.
    """
    part = min(CHECKED_CHANNELS, inputs[2].shape[1])
    grad = grad.clone(memory_format=torch.preserve_format)
    grad[1:], grad[:, part:] = 0, 0
    got = run(function, inputs, grad)
    got = [got[0][:1, :part], got[1][:1], got[2][:1], got[3][:1, :part]]
    query, key, value = (x[:1].double() for x in inputs)

    def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return reference.point_affiliation(query, key, value, kernel_size=kernel_size)

    expected = run(exact, [query, key, value[:, :part]], grad[:1, :part].double())
    worst = max(
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip(got, expected, strict=True)
    )
    dtype = str(inputs[0].dtype).removeprefix('torch.')
    if not worst <= TOLERANCE[dtype]:
        sys.exit(f'{name} is not timed: its error {worst:.1e} exceeds {TOLERANCE[dtype]:.0e}')
    return worst


def measure(options: argparse.Namespace, dtype: str, layout: str) -> list[dict]:
    """Check and time all candidates at one dtype and layout; a row for each."""
    n, d, c, (h, w), s = options.batch, options.embed, options.channels, options.size, options.ratio
    torch.manual_seed(0)
    sizes = [(n, d, h * s, w * s), (n, d, h, w), (n, c, h, w), (n, c, h * s, w * s)]
    *inputs, grad = (
        torch.randn(size, device=options.device)
        .to(getattr(torch, dtype))
        .contiguous(memory_format=LAYOUTS[layout])
        for size in sizes
    )
    functions = candidates(options.kernel_size)
    rows = {name: {'candidate': name, 'dtype': dtype, 'layout': layout} for name in functions}
    for name, function in functions.items():
        if name != 'bilinear':
            rows[name]['error'] = check(name, function, inputs, grad, options.kernel_size)
    for label in PASSES:
        g = None if label == 'forward' else grad
        times = {name: [] for name in functions}
        for i in range(options.rounds + 1):
            for name, function in functions.items():
                start_alike()
                synchronize(inputs[0].device)
                start = time.perf_counter()
                run(function, inputs, g)
                synchronize(inputs[0].device)
                if i:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
        ours = times['sapa_mm']
        for name, row in rows.items():
            ratios = [t / o for t, o in zip(times[name], ours, strict=True)]
            row[label] = {
                'ms': 1e3 * statistics.median(times[name]),
                'ms_min_max': [1e3 * min(times[name]), 1e3 * max(times[name])],
                'time_over_sapa_mm': statistics.median(ratios),
                'extra_bytes': extra_memory(functions[name], inputs, g),
            }
    return list(rows.values())


def environment(device: str) -> dict:
    """Date, versions and device."""
    if device.startswith('cuda'):
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path('/proc/cpuinfo').read_text().splitlines() if sys.platform == 'linux' else []
        models = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        name = f'{models[0] if models else "CPU"}, {torch.get_num_threads()} threads'
    return {
        'date': datetime.date.today().isoformat(),
        'device': name,
        'torch': torch.__version__,
        'sapa_mm': sapa_mm.__version__,
    }


def print_table(rows: list[dict]) -> None:
    """Print a Markdown table: times, extra memory, and both as multiples of ours."""
    head = ['dtype', 'layout', 'candidate', *PASSES]
    print('| ' + ' | '.join(head) + ' |')
    print('|' + ' --- |' * len(head))
    for group in range(0, len(rows), len(candidates(1))):
        ours = rows[group]
        for row in rows[group : group + len(candidates(1))]:
            cells = [row['dtype'], row['layout'], row['candidate']]
            for label in PASSES:
                r, base = row[label], max(ours[label]['extra_bytes'], 1)
                cells.append(
                    f'{r["ms"]:.1f} ms ({r["time_over_sapa_mm"]:.2f}x), '
                    f'{r["extra_bytes"] / 2**20:.1f} MiB ({r["extra_bytes"] / base:.1f}x)'
                )
            print('| ' + ' | '.join(cells) + ' |')


def positive(text: str) -> int:
    """Parse a positive int."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'expected a positive int, got {text}')
    return value


def main() -> None:
    """Parse the options, measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('--batch', type=positive, default=2, help='N')
    add('--size', type=positive, nargs=2, default=(64, 64), metavar=('H', 'W'), help='of the value')
    add('--ratio', type=positive, default=2, help='upsampling ratio')
    add('--embed', type=positive, default=32, help='channels D of query and key')
    add('--channels', type=positive, default=256, help='channels C of the value')
    add('--kernel-size', type=positive, default=5, help='window size K')
    add('--dtypes', nargs='+', default=['float32'], choices=list(TOLERANCE), help='dtypes')
    add('--layouts', nargs='+', default=list(LAYOUTS), choices=list(LAYOUTS), help='layouts')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='where to run')
    add('--threads', type=positive, default=None, help='CPU threads; torch chooses by itself')
    add('--rounds', type=positive, default=9, help='timed rounds')
    add('--json', type=Path, default=None, help='file to write the figures to')
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    info = environment(options.device)
    print(', '.join(f'{k} {v}' for k, v in info.items()))
    n, d, c, (h, w), s = options.batch, options.embed, options.channels, options.size, options.ratio
    print(
        f'query ({n}, {d}, {h * s}, {w * s}), key ({n}, {d}, {h}, {w}), '
        f"value ({n}, {c}, {h}, {w}), K {options.kernel_size}; in brackets: times sapa_mm's\n"
    )
    rows = []
    for dtype in options.dtypes:
        for layout in options.layouts:
            rows += measure(options, dtype, layout)
    print_table(rows)
    if options.json:
        shape = dict(batch=n, size=[h, w], ratio=s, embed=d, channels=c, k=options.kernel_size)
        record = {'environment': info, 'shape': shape, 'rows': rows}
        options.json.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    main()
