"""Compare trained segmentors: a table of their last validation, and a picture.

Each RUN is TITLE=WORK_DIR, a folder that mmseg's train script wrote. Prints mIoU and boundary IoU
and writes a PNG with a few validation images, their truth and every prediction.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint
from mmseg.utils import register_all_modules
from rich.console import Console
from rich.table import Table

from .arguments import positive, usable_device
from .configs import read_config
from .errors import ToolError, reported_by
from .logs import last_metrics
from .predictions import draw_predictions

METRICS = {'mIoU': 'mIoU %', 'mBIoU': 'boundary IoU %', 'aAcc': 'pixels right %'}


def config_of(work_dir: Path) -> Config:
    """Read the config that a work_dir's latest run wrote beside its logs.

    Raises:
        ToolError: There is none.
    """
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ToolError(f'RUN: {work_dir} holds no config; train first')
    return read_config(str(configs[-1]))


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add = parser.add_argument
    add('runs', nargs='+', metavar='RUN', help='TITLE=WORK_DIR')
    add('--out', type=Path, required=True, help='PNG to write')
    add('--images', type=positive, default=4, help='validation images to show (4)')
    add('--device', type=usable_device, default='cpu', help='where to predict (cpu)')
    return parser


def parse_runs(texts: Sequence[str]) -> dict[str, Path]:
    """Parse the runs.

    Returns:
        The folder of each by its title.

    Raises:
        ToolError: One is no TITLE=WORK_DIR, or its folder does not exist.
    """
    runs = {}
    for text in texts:
        title, equals, folder = text.partition('=')
        if not equals or not title or not Path(folder).is_dir():
            raise ToolError(f'RUN: expected TITLE=WORK_DIR with an existing folder, got {text!r}')
        runs[title] = Path(folder)
    return runs


def trained_model(work_dir: Path) -> tuple[Config, str]:
    """Return the config of a work_dir's latest run, and its last checkpoint.

    Raises:
        ToolError: One of the two is missing.
    """
    checkpoint = find_latest_checkpoint(str(work_dir))
    if checkpoint is None:
        raise ToolError(f'RUN: {work_dir} holds no checkpoint; train first')
    return config_of(work_dir), checkpoint


def report(options: argparse.Namespace) -> None:
    """Print the table and draw the picture.

    Raises:
        ToolError: A run is not trained, or the data are gone.
    """
    table = Table('run', *METRICS.values(), title='last validation')
    models = {}
    for title, work_dir in parse_runs(options.runs).items():
        metrics = last_metrics(work_dir)
        table.add_row(title, *(f'{metrics[name]:.2f}' for name in METRICS))
        models[title] = trained_model(work_dir)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw_predictions(options.out, models, options.images, options.device)
    except FileNotFoundError as error:
        raise ToolError(
            f'the data are gone: {error}; `sapa-mm toy-data` makes toy data anew'
        ) from error
    Console().print(table)
    print(f'picture: {options.out}')


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, print the table, draw the picture."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    register_all_modules()
    with reported_by(parser):
        report(options)
