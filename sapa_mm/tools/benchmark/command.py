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

Needs torch alone. CARAFE needs mmcv with its operators, and a plot matplotlib.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence

import torch

from ..arguments import output_file, picture, positive, usable_device
from ..output import write_json
from .candidates import COMPILE_MODES, OURS
from .check import TOLERANCE
from .measure import LAYOUTS, measure
from .report import environment, print_table, print_totals, write_plot
from .rows import PASSES, NotTimed, Row
from .shapes import PRESETS, Shape, preset
from .stopwatch import Stopwatch

# These options give a shape of its own.
OWN = ('batch', 'size', 'ratio', 'embed', 'channels', 'kernel_size')


def odd(text: str) -> int:
    """Parse an odd positive int."""
    value = positive(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f'expected an odd positive int, got {text}')
    return value


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
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


def environment_line(info: Mapping[str, str]) -> str:
    """Format the environment."""
    return ', '.join(f'{key} {value}' for key, value in info.items())


def compare_models(options: argparse.Namespace) -> None:
    """Measure whole models, print, and write the JSON.

    Args:
        options: The parsed options.

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
    if options.json:
        models = [dataclasses.asdict(row) for row in rows]
        size = [height, width]
        record = {'environment': info, 'batch': batch, 'size': size, 'models': models}
        write_json(options.json, record)


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


def compare_operators(options: argparse.Namespace, shapes: Sequence[Shape]) -> int:
    """Measure the operators, print, and write the JSON and the plot.

    Args:
        options: The parsed options.
        shapes: Where to measure.

    Returns:
        Exit status: 1 if a candidate failed its check or ours could not run.
    """
    info = environment(options.device)
    print(environment_line(info))
    print(
        f"In brackets: times {OURS}'s. of copy: bandwidth over the least bytes, as a share of a "
        "copy's. x bilinear: times bilinear's.\n"
    )
    watch = Stopwatch(options.device)
    kinds = [(dtype, layout) for dtype in options.dtypes for layout in options.layouts]
    rows: list[Row] = []
    for i, shape in enumerate(shapes):
        print(shape, end='\n\n', flush=True)
        found: list[Row] = []
        for j, (dtype, layout) in enumerate(kinds):
            # Progress is a line, and no live display: that would run beside what is timed.
            done = f'{i * len(kinds) + j + 1}/{len(shapes) * len(kinds)}'
            print(f'[{done}] {shape.name} {dtype} {layout}', file=sys.stderr, flush=True)
            found += measure(shape, dtype, layout, options.rounds, options.compile, watch)
        print_table(found, options.device.type == 'cuda')
        rows += found
        if options.json:
            write_json(options.json, operators_record(info, shapes[: i + 1], rows))
    print_totals(shapes, rows)
    if options.plot:
        write_plot(options.plot, info, rows)
    problems = failures(rows)
    for line in problems:
        print(line, file=sys.stderr)
    return int(bool(problems))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measure, print, and write the JSON and the plot.

    Args:
        argv: The arguments. Default: those of this process.
        prog: What the user calls it. Default: this process's script.

    Returns:
        Exit status: 1 if a candidate failed its check or ours could not run, 2 if a model cannot
        be compared.
    """
    options, shapes = parse(argv, prog)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device.type == 'cuda':
        torch.cuda.set_device(options.device)
    if options.models:
        compare_models(options)
        return 0
    return compare_operators(options, shapes)
