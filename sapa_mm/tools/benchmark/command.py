"""Time point affiliation against what else computes it, and against plainer upsampling.

Every candidate is checked against the float64 reference first, and what fails is not timed; the
check takes the first and the last image and channels, and where those are large the first, middle
and last rows. All candidates of a shape take turns in one process, so that ratios hold where the
machine's speed drifts: a ratio is the median over the rounds of that round's ratio, a time the
median of the rounds. On a CPU every call gets its large tensors fresh from the system, so that no
candidate profits from the pages of the one before. On a GPU every round draws new inputs, the L2
cache is flushed before each call, and the device has enough to do meanwhile for the call's launches
to be queued: the time is the device's, that of launching is the host's. Extra memory is the peak
that a call allocates through torch, less its results; the peaks that are compared with bilinear's
include them.

Bandwidth counts the fewest bytes a call can move. Forward: read query, key and value once, write
the output once. Backward: read the output's gradient and the three inputs, write three gradients.
(For the other candidates likewise, with their own inputs; bilinear's gradient needs no input.) It
is given as a share of the bandwidth of a copy, read plus written, made in the same round.

--models compares what whole models predict instead: time, parameters and FLOPs; with --train-step
their training steps as well: time and peak memory. --host times what calls take of the host,
--soft-slic the grouping of pixels into superpixels.
--against compares any of these with what --json wrote before.

Needs torch alone. CARAFE needs mmcv with its operators, and a plot matplotlib.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence

import torch

from ..output import write_json
from .against import report
from .candidates import OURS
from .clustering import GRID, SIDE, clustering_table, measure_clustering
from .host import SHAPE, host_table, measure_host
from .measure import measure
from .options import kind_of, parse
from .report import environment, print_table, print_totals, write_plot
from .rows import PASSES, NotTimed, Row
from .shapes import Shape
from .stopwatch import Stopwatch


def environment_line(info: Mapping[str, str]) -> str:
    """Format the environment."""
    return ', '.join(f'{key} {value}' for key, value in info.items())


Outcome = tuple[dict[str, object], int]


def compare_models(options: argparse.Namespace) -> Outcome:
    """Measure whole models, and print.

    Args:
        options: The parsed options.

    Returns:
        What the JSON is to hold, and the exit status.

    Raises:
        ToolError: A config cannot be read, or its model not be built or run.
    """
    from .models import compare, table  # they need mmengine

    height, width = options.image_size or (512, 512)
    batch = options.batch or 1
    watch = Stopwatch(options.device)
    rows = compare(
        options.models, (height, width), batch, options.rounds, options.device, watch.seconds
    )
    info = environment(options.device)
    print(environment_line(info))
    print(f'{batch} x 3 x {height} x {width}, float32; in brackets: times the first.\n')
    print(table(rows))
    models = [dataclasses.asdict(row) for row in rows]
    size = [height, width]
    return {'environment': info, 'batch': batch, 'size': size, 'models': models}, 0


def compare_training(options: argparse.Namespace) -> Outcome:
    """Measure training steps of whole models, and print.

    Args:
        options: The parsed options.

    Returns:
        What the JSON is to hold, and the exit status: 1 if a model could not be timed.

    Raises:
        ToolError: A config cannot be read or has no training step that is known.
    """
    from .training import train_in_turns, training_table  # they need mmengine

    height, width = options.image_size or (512, 512)
    batch = options.batch or 16
    info = environment(options.device)
    print(environment_line(info))
    print(
        f'Training steps of {batch} x 3 x {height} x {width}; predictions of 1 x 3 x {height} x '
        f'{width} in float32. In brackets: times the first.\n',
        flush=True,
    )
    rows = []
    for dtype in options.dtypes:
        rows += train_in_turns(
            options.models, (height, width), batch, options.rounds, dtype, options.device
        )
    print(training_table(rows))
    problems = {
        f'{row.config} is not timed: {found.reason} ({row.dtype})'
        for row in rows
        for found in row.passes.values()
        if isinstance(found, NotTimed)
    }
    for line in sorted(problems):
        print(line, file=sys.stderr)
    record: dict[str, object] = {'environment': info, 'batch': batch, 'size': [height, width]}
    record['training'] = [row.record() for row in rows]
    return record, int(bool(problems))


def compare_host(options: argparse.Namespace) -> Outcome:
    """Measure what calls take of the host, and print.

    Args:
        options: The parsed options.

    Returns:
        What the JSON is to hold, and the exit status: 1 if ours could not run on a GPU.
    """
    info = environment(options.device)
    print(environment_line(info))
    low, high = SHAPE.sizes()['value'], SHAPE.sizes()['out']
    on_gpu = options.device.type == 'cuda'
    waits = 'nothing is waited for' if on_gpu else 'kernels of Triton are not launched'
    print(f'{low} to {high}, host time of a call; {waits}. In brackets: times bilinear.\n')
    rows = measure_host(options.rounds, options.device)
    print(host_table(rows), end='\n\n')
    failed = any(isinstance(found, NotTimed) for row in rows for found in row.passes.values())
    return {'environment': info, 'host': [row.record() for row in rows]}, int(failed and on_gpu)


def compare_clustering(options: argparse.Namespace) -> Outcome:
    """Measure the forms of differentiable SLIC, and print.

    Args:
        options: The parsed options.

    Returns:
        What the JSON is to hold, and the exit status: 1 if ours failed its check or could not run.
    """
    info = environment(options.device)
    batch = options.batch or 8
    print(environment_line(info))
    print(
        f'{batch} x {SIDE} x {SIDE}, {GRID[0] * GRID[1]} superpixels, float32; times soft_slic in '
        'brackets, and the memory beyond the results.\n'
    )
    rows = measure_clustering(batch, options.rounds, Stopwatch(options.device))
    print(clustering_table(rows), end='\n\n')
    failed = isinstance(rows[0].passes[PASSES[0]], NotTimed)
    record = [row.record() for row in rows]
    return {'environment': info, 'batch': batch, 'clustering': record}, int(failed)


def operators_record(
    info: Mapping[str, str], shapes: Sequence[Shape], rows: Sequence[Row]
) -> dict[str, object]:
    """Return what the JSON holds of the operators.

    Args:
        info: The environment.
        shapes: The shapes that were measured.
        rows: Their rows.
    """
    return {
        'environment': info,
        'shapes': [dataclasses.asdict(shape) for shape in shapes],
        'rows': [row.record() for row in rows],
    }


def failures(rows: Sequence[Row]) -> list[str]:
    """Say which results were wrong, and whether ours was not timed: a line for each row."""
    found = []
    for row in rows:
        problems = [p for p in (row.passes[label] for label in PASSES) if isinstance(p, NotTimed)]
        if problems and (problems[0].refused or row.candidate == OURS):
            where = f'{row.shape}, {row.dtype}, {row.layout}'
            found.append(f'{row.candidate} is not timed: {problems[0].reason} ({where})')
    return found


def compare_operators(options: argparse.Namespace, shapes: Sequence[Shape]) -> Outcome:
    """Measure the operators, print, and write the plot, and the JSON after every shape.

    Args:
        options: The parsed options.
        shapes: Where to measure.

    Returns:
        What the JSON is to hold, and the exit status: 1 if a candidate failed its check or ours
        could not run.
    """
    info = environment(options.device)
    print(environment_line(info))
    print(
        f"In brackets: times {OURS}'s. of copy: bandwidth over the least bytes, as a share of a "
        "copy's. x bilinear: times bilinear's; peak: of memory, results included.\n"
    )
    watch = Stopwatch(options.device)
    on_gpu = options.device.type == 'cuda'
    kinds = [(dtype, layout) for dtype in options.dtypes for layout in options.layouts]
    rows: list[Row] = []
    for i, shape in enumerate(shapes):
        print(shape, end='\n\n', flush=True)
        found: list[Row] = []
        for j, (dtype, layout) in enumerate(kinds):
            # Progress is a line, and no live display: that would run beside what is timed.
            done = f'{i * len(kinds) + j + 1}/{len(shapes) * len(kinds)}'
            print(f'[{done}] {shape.name} {dtype} {layout}', file=sys.stderr, flush=True)
            rounds, names = options.rounds, options.candidates
            found += measure(shape, dtype, layout, rounds, options.compile, watch, names)
        print_table(found, on_gpu)
        rows += found
        if options.json:
            write_json(options.json, operators_record(info, shapes[: i + 1], rows))
    print_totals(shapes, rows)
    if options.plot:
        write_plot(options.plot, info, rows)
    problems = failures(rows)
    for line in problems:
        print(line, file=sys.stderr)
    return operators_record(info, shapes, rows), int(bool(problems))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measure, print, and write the JSON and the plot.

    Args:
        argv: The arguments. Default: those of this process.
        prog: What the user calls it. Default: this process's script.

    Returns:
        Exit status: 1 if a candidate failed its check or ours or a model could not run, or with
        --fail-if-slower if anything got slower; 2 if a model cannot be compared.
    """
    options, shapes = parse(argv, prog, __doc__)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device.index is not None:
        torch.cuda.set_device(options.device)
    kind = kind_of(options)
    if kind == 'rows':
        record, status = compare_operators(options, shapes)
    else:
        modes = {
            'host': compare_host,
            'models': compare_models,
            'training': compare_training,
            'clustering': compare_clustering,
        }
        record, status = modes[kind](options)
    if options.json:
        write_json(options.json, record)
    if options.against:
        slower = report(options.against, record, options.tolerance)
        status = status or int(slower and options.fail_if_slower)
    return status
