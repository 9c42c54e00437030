"""Compare upsamplers in one model: train, test and report them all, with several seeds.

  %(prog)s mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py
  %(prog)s my_detector.py --upsamplers nearest,carafe,sapa-b --seeds 0 1 --jobs 2
  %(prog)s my_segmentor.py --budget iterations time --baseline bilinear
  %(prog)s my_segmentor.py --upsamplers unchanged,sapa-i,sapa-i:temperature=8

CONFIG is a path or the name of a config that a framework installs, of a model whose features are
upsampled by a host of this project (`sapa-mm swap` says which). Every upsampler gets a
config of its own that differs in nothing else, every seed a training and a test. With the budget
'time' each trains for as long as the fastest needs for the whole schedule, by a shortened one; the
time of an iteration is measured before. A comparison that was stopped, by whatever, goes on where
it was when it is started again: what is finished is kept, and a training resumes from its last
checkpoint. The report, of what is finished, is in the work dir as report.md and report.html, its
figures as report.json.
"""

import argparse
import importlib.util
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..arguments import positive
from ..configs import is_depth, read_config
from ..errors import ToolError, reported_by
from ..presets import upsampler_names
from ..swap import swap
from .choices import UNCHANGED, choice, choices, chosen_config

UPSAMPLERS = (
    'nearest',
    'bilinear',
    'carafe',
    'index-net',
    'a2u',
    'dysample',
    'fade',
    'sapa-i',
    'sapa-b',
    'sapa-g',
)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        'config',
        metavar='CONFIG',
        help='config of a segmentor, depth estimator, detector or matting network',
    )
    add(
        '--upsamplers',
        type=choices,
        default=list(UPSAMPLERS),
        metavar='NAME,...',
        help=f'some of {", ".join([*upsampler_names(), UNCHANGED])}, which is CONFIG as it is; '
        f'a name may have options, as sapa-b:kernel_size=3 ({",".join(UPSAMPLERS)})',
    )
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='seeds (0 1 2)')
    add(
        '--budget',
        nargs='+',
        choices=('iterations', 'time'),
        default=['iterations'],
        help='what all get the same of; both may be given (iterations)',
    )
    add(
        '--baseline',
        type=choice,
        metavar='NAME',
        help='what the others are compared with (bilinear, or else the first)',
    )
    add('--work-dir', type=Path, help="where to keep everything (work_dirs/compare/CONFIG's name)")
    add('--jobs', type=positive, help='trainings at a time (one a GPU, or one without)')
    add(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='as of train.py, for every training and test',
    )
    add('--image-size', type=positive, nargs=2, metavar=('H', 'W'), help="for cost (the config's)")
    add('--images', type=positive, default=4, help='images in the picture (4)')
    add('--report-only', action='store_true', help='report what is finished, without training')
    return parser


def check(options: argparse.Namespace) -> None:
    """Check what can be told before a folder is made.

    Raises:
        ToolError: A seed comes twice, the baseline is not compared, a package is missing, or CONFIG
            has nothing to swap.
    """
    if len(set(options.seeds)) < len(options.seeds):
        raise ToolError(f'argument --seeds: expected every seed once, got {options.seeds}')
    if options.baseline and options.baseline not in options.upsamplers:
        listed = ', '.join(options.upsamplers)
        raise ToolError(f'argument --baseline: expected one of {listed}, got {options.baseline}')
    needed = ['matplotlib', 'rich', 'markdown_it', 'scipy']
    config = read_config(options.config)
    if is_depth(config):
        needed.append('skimage')  # draws the edges that DepthBoundaryError compares
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        raise ToolError(f'{", ".join(missing)} missing: pip install matplotlib rich scikit-image')
    chosen = filter(None, map(chosen_config, options.upsamplers))
    if (first := next(chosen, None)) is not None:
        swap(config, first)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write the configs, make the runs, write the report.

    Returns:
        Exit status: 1 if a run failed.
    """
    warnings.filterwarnings('ignore', 'pkg_resources', UserWarning)  # mmengine imports it
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    # SIGTERM becomes an exception, on which what runs is stopped.
    before_us = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with reported_by(parser):
            check(options)
            from .comparison import compare

            return compare(options)
    finally:
        signal.signal(signal.SIGTERM, before_us)
