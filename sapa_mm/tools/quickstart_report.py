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
from .errors import ToolError
from .logs import last_metrics
from .predictions import draw_predictions

METRICS = {'mIoU': 'mIoU %', 'mBIoU': 'boundary IoU %', 'aAcc': 'pixels right %'}


def config_of(work_dir: Path) -> Config:
    """The config that a work_dir's latest run wrote beside its logs."""
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ToolError(f'RUN: {work_dir} holds no config; train first')
    return Config.fromfile(configs[-1])


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, print the table, draw the picture."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='TITLE=WORK_DIR')
    parser.add_argument('--out', type=Path, required=True, help='PNG to write')
    parser.add_argument('--images', type=positive, default=4, help='validation images to show (4)')
    parser.add_argument(
        '--device', type=usable_device, default='cpu', help='where to predict (cpu)'
    )
    options = parser.parse_args(argv)
    runs = {}
    for run in options.runs:
        title, equals, folder = run.partition('=')
        if not equals or not title or not Path(folder).is_dir():
            parser.error(f'RUN: expected TITLE=WORK_DIR with an existing folder, got {run!r}')
        runs[title] = Path(folder)

    register_all_modules()
    table = Table('run', *METRICS.values(), title='last validation')
    models = {}
    for title, work_dir in runs.items():
        metrics = last_metrics(work_dir)
        table.add_row(title, *(f'{metrics[name]:.2f}' for name in METRICS))
        checkpoint = find_latest_checkpoint(str(work_dir))
        if checkpoint is None:
            raise ToolError(f'RUN: {work_dir} holds no checkpoint; train first')
        models[title] = config_of(work_dir), checkpoint
    options.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw_predictions(options.out, models, options.images, options.device)
    except FileNotFoundError as error:
        raise ToolError(
            f'the data are gone: {error}; tools/make_toy_dataset.py makes toy data anew'
        ) from error
    Console().print(table)
    print(f'picture: {options.out}')
