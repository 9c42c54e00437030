"""Time point affiliation against what else computes it, and against plainer upsampling.

Every candidate is checked against the float64 reference first, and what fails is not timed. All
candidates of a shape take turns in one process, so that ratios hold where the machine's speed
drifts: a ratio is the median over the rounds of that round's ratio, a time the median of the
rounds. On a CPU every call gets its large tensors fresh from the system, so that no candidate
profits from the pages of the one before. On a GPU every round draws new inputs, the L2 cache is
flushed before each call, and the device has enough to do meanwhile for the call's launches to be
queued: the time is the device's, that of launching is noted in the JSON. Extra memory is the peak
that a call allocates through torch, less its results.

Bandwidth counts the fewest bytes a call can move. Forward: read query, key and value once, write
the output once. Backward: read the output's gradient and the three inputs, write three gradients.
(For the other candidates likewise, with their own inputs; bilinear's gradient needs no input.) It
is given as a share of the bandwidth of a copy, read plus written, made in the same round.

--models compares what whole models predict instead: time, parameters and FLOPs.

Needs torch alone. SAPA-B as a module needs mmengine, CARAFE mmcv with its operators, and a plot
matplotlib.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler's start and stop are no news

import torch
from torch import Tensor

from ..arguments import output_file, picture, positive, usable_device
from ..output import write_json
from .candidates import (
    BILINEAR,
    COMPILE_MODES,
    OURS,
    PASSES,
    Candidate,
    Check,
    Shape,
    candidates,
    reason_of,
)
from .report import (
    environment,
    print_table,
    print_totals,
    summarize,
    write_plot,
)

# Allowed max|error| / max|reference| before a candidate is timed.
TOLERANCE = {'float32': 1e-5, 'float16': 4e-3, 'bfloat16': 3e-2}
LAYOUTS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}
PRESETS = ('fpn', 'segformer', 'dysample', 'large', 'small')
OWN = ('batch', 'size', 'ratio', 'embed', 'channels', 'kernel_size')
# glibc's name for the size from which memory comes from the system and goes back to it.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 2**24
CPU_CACHE_BYTES = 2**25
# Of a GPU before a call, in cycles of 2 GHz: two milliseconds, or twice what launching takes.
HEAD_START_CYCLES = 4_000_000
LAUNCH_CYCLES = 4_000_000_000
# AMD's last cache, behind the L2 that torch knows of.
HIP_CACHE_BYTES = 2**28


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache that torch knows of; on a CPU, one that is large for a CPU."""
    if device.type != 'cuda':
        return CPU_CACHE_BYTES
    size = torch.cuda.get_device_properties(device).L2_cache_size
    return max(size, HIP_CACHE_BYTES) if torch.version.hip else size


def preset(name: str, device: torch.device) -> list[Shape]:
    """Shapes by the name of their preset.

    Args:
        name: ``'fpn'``: the four levels of a detector's FPN at 800 x 1216, two images, as one GPU
            gets them in mmdetection's configs. ``'segformer'``: the six steps of SegFormer's head
            at 512 x 512, which have three sizes. ``'dysample'``: the size of Figure 1 of DySample
            (Liu et al., ICCV 2023). ``'large'``: a float16 output of at least four times the last
            cache. ``'small'``: for a CPU.
        device: To fit ``'large'`` to.
    """
    if name == 'fpn':
        sizes = [(200, 304), (100, 152), (50, 76), (25, 38)]
        return [Shape(f'fpn {h}x{w}', 2, h, w) for h, w in sizes]
    if name == 'segformer':
        steps = {16: ('c4_c3',), 32: ('c4_c2', 'c3_c2'), 64: ('c4_c1', 'c3_c1', 'c2_c1')}
        return [Shape(f'segformer {n}x{n}', 16, n, n, steps=steps[n]) for n in steps]
    if name == 'dysample':
        return [Shape('dysample 120x120', 1, 120, 120)]
    if name == 'large':
        image_bytes = 256 * 512 * 512 * 2
        return [Shape('large 256x256', -(-4 * cache_bytes(device) // image_bytes), 256, 256)]
    return [Shape('small 64x64', 2, 64, 64)]


def draw(
    shape: Shape, names: set[str], dtype: torch.dtype, layout: str, device: torch.device
) -> dict[str, Tensor]:
    """Draw the named tensors and the gradient of the result (``'out'``)."""
    sizes = shape.sizes()
    options = {'dtype': dtype, 'device': device, 'memory_format': LAYOUTS[layout]}
    tensors = {name: torch.empty(sizes[name], **options) for name in sorted(names | {'out'})}
    refill(tensors)
    return tensors


def refill(tensors: dict[str, Tensor]) -> None:
    """Fill with fresh normal numbers; scores have variance 1, and weights are positive, sum 1.

    With larger scores the check would be one of how a candidate rounds them in half precision.
    """
    for name, tensor in tensors.items():
        tensor.normal_(0, tensor.shape[1] ** -0.5 if name == 'query' else 1)
        if name == 'weights':
            tensor.copy_(tensor.float().softmax(1))


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


class Stopwatch:
    """Times calls and a copy on a device.

    Args:
        device: Which.
    """

    def __init__(self, device: torch.device):
        self.device = device
        cache = cache_bytes(device)
        self.source = torch.empty(max(4 * cache, 2**27), dtype=torch.uint8, device=device).random_()
        self.target = torch.empty_like(self.source)
        self.flushed = torch.zeros(
            2 * cache if device.type == 'cuda' else 0, device=device, dtype=torch.int8
        )

    def seconds(self, call: Callable[[], object], launch: float = 0.0) -> tuple[float, float]:
        """Time one call.

        Args:
            call: The call.
            launch: Seconds that launching it took before.

        Returns:
            Seconds of the device, and seconds until it was launched.
        """
        if self.device.type != 'cuda':
            start_alike()
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start,) * 2
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(max(HEAD_START_CYCLES, int(launch * LAUNCH_CYCLES)))
        self.flushed.add_(1)
        self.flushed.sum()  # so that the call need not write back what the line above left
        begin.record()
        start = time.perf_counter()
        call()
        launched = time.perf_counter() - start
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, launched

    def copy_bandwidth(self) -> float:
        """Bytes per second, read and written, of a copy of several times the cache."""
        seconds, _ = self.seconds(lambda: self.target.copy_(self.source))
        return 2 * self.source.nbytes / seconds


def extra_memory(candidate: Candidate, tensors: dict[str, Tensor], grad: Tensor | None) -> int:
    """Peak bytes that a call allocates beyond its results."""
    device = tensors['out'].device
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        results = candidate.run(tensors, grad)
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with torch.profiler.profile(profile_memory=True) as profile:
            results = candidate.run(tensors, grad)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
        level = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            level += event.nbytes()
            peak = max(peak, level)
    return peak - sum(x.nbytes for x in results)


def first_calls(
    contenders: Sequence[Candidate], tensors: dict[str, Tensor], check: Check, rows: dict[str, dict]
) -> None:
    """Call every candidate for the first time, forward and with backward, and check its results.

    Args:
        contenders: The candidates.
        tensors: By name.
        check: Of these tensors.
        rows: By candidate; gets ``'first_call_s'``, ``'error'``, and for what is not to be timed
            the reason: ``'not_timed'``, and ``'refused'`` where it is a wrong result.
    """
    device = tensors['out'].device
    limit = TOLERANCE[str(tensors['out'].dtype).removeprefix('torch.')]
    for candidate in contenders:
        row = rows[candidate.name]
        reason, refused = candidate.reason, False
        for label, grad in zip(PASSES, (None, check.grad), strict=True):
            if not reason:
                try:
                    synchronize(device)
                    start = time.perf_counter()
                    got = candidate.run(tensors, grad)
                    synchronize(device)
                    row['first_call_s'][label] = time.perf_counter() - start
                    if candidate.exact:
                        error = check.error(candidate, got)
                        row['error'] = max(row.get('error', 0), error)
                        if not error <= limit:
                            reason, refused = f'its error {error:.1e} exceeds {limit:.0e}', True
                            row['error'] = error
                except Exception as error:  # of whatever kind: no rival ends the benchmark
                    reason = reason_of(error)
                got = None
            if reason:
                row[label] = {'not_timed': reason, 'refused': refused}
        if refused:
            row['forward'] = row['forward+backward']


def time_passes(
    contenders: Sequence[Candidate],
    tensors: dict[str, Tensor],
    shape: Shape,
    rounds: int,
    watch: Stopwatch,
    rows: dict[str, dict],
) -> None:
    """Time what may be timed.

    Args:
        contenders: The candidates.
        tensors: By name.
        shape: The sizes.
        rounds: Timed rounds.
        watch: Times them.
        rows: By candidate; gets what is measured under the name of the pass.
    """
    for label in PASSES:
        grad = None if label == 'forward' else tensors['out']
        live = {c.name: c for c in contenders if label not in rows[c.name]}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in live}
        launches = dict.fromkeys(live, 0.0)
        copies = []
        for i in range(rounds + 1):
            if watch.device.type == 'cuda':
                refill(tensors)
            bandwidth = watch.copy_bandwidth()
            for name, candidate in list(live.items()):
                try:
                    call = partial(candidate.run, tensors, grad)
                    seconds = watch.seconds(call, launches[name])
                    launches[name] = seconds[1]
                    if not i:  # the first round warms up
                        extra = extra_memory(candidate, tensors, grad)
                        rows[name][label] = {'extra_bytes': extra}
                except Exception as error:
                    rows[name][label] = {'not_timed': reason_of(error), 'refused': False}
                    del live[name]
                    continue
                if i:
                    times[name].append(seconds)
            if i:
                copies.append(bandwidth)
        for name, candidate in live.items():
            rows[name][label] |= summarize(
                candidate.least_bytes(shape, tensors['out'].itemsize, label),
                times[name],
                {base: times[base] for base in (OURS, BILINEAR) if base in live},
                copies,
            )


def measure(
    shape: Shape, dtype: str, layout: str, rounds: int, compilation: str, watch: Stopwatch
) -> list[dict]:
    """Check and time all candidates at one shape, dtype and layout; a row for each.

    Args:
        shape: The sizes.
        dtype: Name in `TOLERANCE`.
        layout: Name in `LAYOUTS`.
        rounds: Timed rounds.
        compilation: Name in `COMPILE_MODES`, or ``'off'``.
        watch: Times them.
    """
    torch.manual_seed(0)
    if compilation != 'off':
        torch.compiler.reset()  # else torch takes new sizes for dynamic ones, and then gives up
    contenders = candidates(shape, watch.device, getattr(torch, dtype), compilation)
    names = {name for c in contenders if not c.reason for name in c.inputs}
    tensors = draw(shape, names, getattr(torch, dtype), layout, watch.device)
    common = {'shape': shape.name, 'dtype': dtype, 'layout': layout}
    rows = {c.name: {**common, 'candidate': c.name, 'first_call_s': {}} for c in contenders}
    first_calls(contenders, tensors, Check(shape, tensors), rows)
    time_passes(contenders, tensors, shape, rounds, watch, rows)
    return list(rows.values())


def odd(text: str) -> int:
    """Parse an odd positive int."""
    value = positive(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f'expected an odd positive int, got {text}')
    return value


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--shapes',
        nargs='+',
        choices=PRESETS,
        help='named shapes (small on a CPU, all others on a GPU)',
    )
    own = parser.add_argument_group('a shape of your own, in place of --shapes')
    own.add_argument('--batch', type=positive, help='N (2)')
    own.add_argument(
        '--size', type=positive, nargs=2, metavar=('H', 'W'), help='of the value (64 64)'
    )
    own.add_argument('--ratio', type=positive, help='upsampling ratio (2)')
    own.add_argument('--embed', type=positive, help='channels D of query and key (32)')
    own.add_argument('--channels', type=positive, help='channels C of the value (256)')
    own.add_argument('--kernel-size', type=odd, help='window size K (5)')
    models = parser.add_argument_group('whole models, in place of --shapes')
    models.add_argument(
        '--models',
        nargs='+',
        metavar='CONFIG',
        help='time what whole models predict, in float32 and relative to the first; needs '
        'mmsegmentation or mmdetection',
    )
    models.add_argument(
        '--image-size', type=positive, nargs=2, metavar=('H', 'W'), help='of the images (512 512)'
    )
    dtypes, layouts = list(TOLERANCE), list(LAYOUTS)
    add('--dtypes', nargs='+', choices=dtypes, help='dtypes (float32 on a CPU, all on a GPU)')
    add('--layouts', nargs='+', choices=layouts, help='memory layouts (both)')
    add('--device', type=usable_device, help='where to run (cuda where there is one, else cpu)')
    add('--threads', type=positive, help='CPU threads (torch chooses)')
    add('--rounds', type=positive, help='timed rounds (9 on a CPU, 25 on a GPU)')
    add(
        '--compile',
        nargs='?',
        const='default',
        choices=['off', *COMPILE_MODES],
        help='how torch.compile compiles the candidates that need it (off on a CPU, where it takes '
        'a minute a dtype and layout; default on a GPU)',
    )
    add('--json', type=output_file, help='file to write the figures to, after every shape')
    add('--plot', type=picture, help='picture to write: times relative to bilinear interpolation')
    return parser


def parse(
    argv: Sequence[str] | None, prog: str | None = None
) -> tuple[argparse.Namespace, list[Shape]]:
    """Parse the options, fill in what depends on the device, and choose the shapes."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    if options.device is None:
        options.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    on_gpu = options.device.type == 'cuda'
    own = {name: getattr(options, name) for name in OWN if getattr(options, name) is not None}
    for name in ('shapes', 'plot', 'dtypes', 'layouts', 'compile', *(own.keys() - {'batch'})):
        if options.models and getattr(options, name):
            parser.error(f'argument --{name.replace("_", "-")}: not allowed with --models')
    if options.image_size and not options.models:
        parser.error('argument --image-size: not allowed without --models')
    options.dtypes = options.dtypes or (list(TOLERANCE) if on_gpu else ['float32'])
    options.layouts = options.layouts or list(LAYOUTS)
    options.rounds = options.rounds or (25 if on_gpu else 9)
    options.compile = options.compile or ('default' if on_gpu else 'off')
    if options.models:
        return options, []
    if own and options.shapes:
        option = '--' + next(iter(own)).replace('_', '-')
        parser.error(f'argument {option}: not allowed with --shapes, whose sizes are fixed')
    if own:
        height, width = own.pop('size', (64, 64))
        return options, [Shape('own', **{'batch': 2, 'height': height, 'width': width, **own})]
    names = options.shapes or (PRESETS[:-1] if on_gpu else PRESETS[-1:])
    return options, [shape for name in names for shape in preset(name, options.device)]


def compare_models(options: argparse.Namespace) -> int:
    """Measure whole models, print, and write the JSON."""
    from ..errors import ToolError
    from .models import compare, table

    size = tuple(options.image_size or (512, 512))
    batch = options.batch or 1
    watch = Stopwatch(options.device)
    try:
        rows = compare(options.models, size, batch, options.rounds, options.device, watch.seconds)
    except ToolError as error:
        print(f'benchmark.py: {error}', file=sys.stderr)
        return 2
    info = environment(options.device)
    print(', '.join(f'{k} {v}' for k, v in info.items()))
    print(f'{batch} x 3 x {size[0]} x {size[1]}, float32; in brackets: times the first.\n')
    print(table(rows))
    if options.json:
        record = {'environment': info, 'batch': batch, 'size': size, 'models': rows}
        write_json(options.json, record)
    return 0


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measure, print, and write the JSON and the plot.

    Returns:
        Exit status: 1 if a candidate failed its check or ours could not run.
    """
    options, shapes = parse(argv, prog)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device.type == 'cuda':
        torch.cuda.set_device(options.device)
    if options.models:
        return compare_models(options)
    info = environment(options.device)
    print(', '.join(f'{k} {v}' for k, v in info.items()))
    print(
        f"In brackets: times {OURS}'s. of copy: bandwidth over the least bytes, as a share of a "
        "copy's. x bilinear: times bilinear's.\n"
    )
    watch = Stopwatch(options.device)
    kinds = [(dtype, layout) for dtype in options.dtypes for layout in options.layouts]
    record = {'environment': info, 'shapes': [], 'rows': []}
    for i, shape in enumerate(shapes):
        print(shape, end='\n\n', flush=True)
        rows = []
        for j, (dtype, layout) in enumerate(kinds):
            # A line, and no live display: that would run beside what is timed.
            done = f'{i * len(kinds) + j + 1}/{len(shapes) * len(kinds)}'
            print(f'[{done}] {shape.name} {dtype} {layout}', file=sys.stderr, flush=True)
            rows += measure(shape, dtype, layout, options.rounds, options.compile, watch)
        print_table(rows)
        record['shapes'].append(dataclasses.asdict(shape))
        record['rows'] += rows
        if options.json:
            write_json(options.json, record)
    print_totals(shapes, record['rows'])
    if options.plot:
        write_plot(options.plot, info, record['rows'])
    failed = False
    for row in record['rows']:
        problems = [p for p in (row[label] for label in PASSES) if 'not_timed' in p]
        if problems and (problems[0]['refused'] or row['candidate'] == OURS):
            failed = True
            where = f'{row["shape"]}, {row["dtype"]}, {row["layout"]}'
            reason = problems[0]['not_timed']
            print(f'{row["candidate"]} is not timed: {reason} ({where})', file=sys.stderr)
    return int(failed)
