"""The options of the benchmark."""

import argparse
import math
from collections.abc import Sequence

import torch

from ..arguments import output_file, picture, positive, usable_device
from .against import KINDS, read_baseline
from .candidates import COMPILE_MODES, NAMES, default_names, option_name
from .check import TOLERANCE
from .measure import LAYOUTS
from .shapes import PRESETS, Shape, preset

# These options give a shape of its own.
OWN = ('batch', 'size', 'ratio', 'embed', 'channels', 'kernel_size')
# What the other kinds have no use for, but for the exceptions in `refuse_what_has_no_use`.
OF_OPERATORS = ('shapes', 'candidates', 'plot', 'dtypes', 'layouts', 'compile', *OWN)


def odd(text: str) -> int:
    """Parse an odd positive int."""
    value = positive(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f'expected an odd positive int, got {text}')
    return value


def percent(text: str) -> float:
    """Parse a finite number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'expected a percentage of at least 0, got {text}')
    return value


def make_parser(prog: str | None, description: str | None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--shapes',
        nargs='+',
        choices=PRESETS,
        help='named shapes (small on a CPU, all but gpu and small on a GPU); gpu, which stands '
        'alone, is four sizes, in float16, with SAPA-I and SAPA-G and without slow candidates',
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
    models.add_argument(
        '--train-step',
        action='store_true',
        help="time mmsegmentation's training step with --batch images (16) as well, in --dtypes "
        '(on a GPU float16, by AMP; on a CPU float32), and its memory',
    )
    parser.add_argument_group('the host, in place of --shapes').add_argument(
        '--host',
        action='store_true',
        help='time what a call takes of the host, from 16x16 to 32x32, with and without autocast; '
        'without a GPU the launches are left out',
    )
    parser.add_argument_group('superpixels, in place of --shapes').add_argument(
        '--soft-slic',
        action='store_true',
        help='time soft_slic for --batch crops (8) of 208x208 and 169 superpixels, as SSN is '
        'trained, beside the form that compares all pixels with all superpixels',
    )
    against = parser.add_argument_group('what has changed')
    against.add_argument(
        '--against',
        type=read_baseline,
        metavar='BASELINE.json',
        help='say what got slower and faster since an earlier --json of the same options',
    )
    against.add_argument(
        '--tolerance', type=percent, metavar='PERCENT', help='that is not worth telling (5)'
    )
    against.add_argument(
        '--fail-if-slower', action='store_true', help='end with status 1 if anything got slower'
    )
    dtypes, layouts = list(TOLERANCE), list(LAYOUTS)
    names = [option_name(name) for name in NAMES]
    add(
        '--candidates',
        nargs='+',
        choices=names,
        metavar='NAME',
        help=f'what is compared, of {", ".join(names)} (all but SAPA-I and SAPA-G)',
    )
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


def kind_of(options: argparse.Namespace) -> str:
    """Return what is measured, one of `KINDS`."""
    if options.host:
        return 'host'
    if options.soft_slic:
        return 'clustering'
    if options.models:
        return 'training' if options.train_step else 'models'
    return 'rows'


def refuse_what_has_no_use(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that do not go together; nothing that was given is ignored.

    Raises:
        SystemExit: There are some; the exit status is 2.
    """

    def refuse(names: Sequence[str], why: str) -> None:
        for name in names:
            if getattr(options, name):
                parser.error(f'argument --{name.replace("_", "-")}: not allowed {why}')

    kind = kind_of(options)
    if kind == 'host':
        refuse(['models', 'soft_slic', *OF_OPERATORS], 'with --host')
    elif kind == 'clustering':
        others = [name for name in OF_OPERATORS if name != 'batch']
        refuse(['models', *others], 'with --soft-slic')
    elif kind in ('models', 'training'):
        kept = {'batch'} if kind == 'models' else {'batch', 'dtypes'}
        refuse([name for name in OF_OPERATORS if name not in kept], 'with --models')
    if not options.models:
        refuse(['image_size', 'train_step'], 'without --models')
    if not options.against:
        if options.tolerance is not None:
            parser.error('argument --tolerance: not allowed without --against')
        refuse(['fail_if_slower'], 'without --against')
    elif options.against.kind != kind:
        parser.error(
            f'argument --against: {options.against.path} holds {KINDS[options.against.kind]}, not '
            f'{KINDS[kind]}: give a file that --json wrote with the same options'
        )
    if options.shapes and 'gpu' in options.shapes and set(options.shapes) != {'gpu'}:
        parser.error('argument --shapes: expected gpu alone, its candidates and dtype are others')


def parse(
    argv: Sequence[str] | None, prog: str | None = None, description: str | None = None
) -> tuple[argparse.Namespace, list[Shape]]:
    """Parse the options, fill in what depends on the device, and choose the shapes."""
    parser = make_parser(prog, description)
    options = parser.parse_args(argv)
    refuse_what_has_no_use(parser, options)
    if options.device is None:
        options.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    on_gpu = options.device.type == 'cuda'
    kind, table = kind_of(options), options.shapes and 'gpu' in options.shapes
    dtypes = list(TOLERANCE) if on_gpu else ['float32']
    if table or (kind == 'training' and on_gpu):
        dtypes = ['float16']
    options.dtypes = options.dtypes or dtypes
    if kind == 'training' and not on_gpu and options.dtypes != ['float32']:
        parser.error(
            f'argument --dtypes: expected float32 on a CPU, got {" ".join(options.dtypes)}: '
            'mmengine trains in half precision on a GPU alone'
        )
    options.layouts = options.layouts or list(LAYOUTS)
    options.rounds = options.rounds or (25 if on_gpu else 9)
    options.compile = options.compile or ('default' if on_gpu else 'off')
    options.tolerance = 5.0 if options.tolerance is None else options.tolerance
    if kind != 'rows':
        return options, []
    chosen = options.candidates
    options.candidates = default_names('gpu' if table else None)
    if chosen:
        options.candidates = tuple(name for name in NAMES if option_name(name) in chosen)
    own = {name: getattr(options, name) for name in OWN if getattr(options, name) is not None}
    if own and options.shapes:
        option = '--' + next(iter(own)).replace('_', '-')
        parser.error(f'argument {option}: not allowed with --shapes, whose sizes are fixed')
    if own:
        height, width = own.pop('size', (64, 64))
        return options, [Shape('own', **{'batch': 2, 'height': height, 'width': width, **own})]
    names = options.shapes or (PRESETS[:-2] if on_gpu else PRESETS[-1:])
    return options, [shape for name in names for shape in preset(name, options.device)]
