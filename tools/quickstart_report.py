#!/usr/bin/env python
"""Compare trained segmentors: a table of their last validation, and a picture.

Each RUN is TITLE=WORK_DIR, a folder that mmseg's train script wrote. Prints mIoU and boundary IoU
and writes a PNG with a few validation images, their truth and every prediction.
"""

import argparse
import json
import sys
from pathlib import Path

from _predictions import draw_predictions
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint
from mmseg.utils import register_all_modules
from rich.console import Console
from rich.table import Table

METRICS = {'mIoU': 'mIoU %', 'mBIoU': 'boundary IoU %', 'aAcc': 'pixels right %'}


def fail(message: str) -> None:
    """Leave with a message."""
    sys.exit(f'quickstart_report.py: {message}')


def last_metrics(work_dir: Path) -> dict[str, float]:
    """The metrics of the latest validation among a work_dir's logs."""
    for log in sorted(work_dir.glob('*/vis_data/scalars.json'), reverse=True):
        records = [json.loads(line) for line in log.read_text().splitlines()]
        validations = [record for record in records if 'mIoU' in record]
        if validations:
            return validations[-1]
    fail(f'RUN: {work_dir} holds no log of a validation; train first')


def config_of(work_dir: Path) -> Config:
    """The config that a work_dir's latest run wrote beside its logs."""
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        fail(f'RUN: {work_dir} holds no config; train first')
    return Config.fromfile(configs[-1])


def main() -> None:
    """Parse the arguments, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='TITLE=WORK_DIR')
    parser.add_argument('--out', type=Path, required=True, help='PNG to write')
    parser.add_argument('--images', type=int, default=4, help='validation images to show (4)')
    parser.add_argument('--device', default='cpu', help='where to predict (cpu)')
    options = parser.parse_args()
    if options.images < 1:
        parser.error(f'--images: expected at least 1, got {options.images}')
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
            fail(f'RUN: {work_dir} holds no checkpoint; train first')
        models[title] = config_of(work_dir), checkpoint
    options.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw_predictions(options.out, models, options.images, options.device)
    except FileNotFoundError as error:
        fail(f'the data are gone: {error}; tools/make_toy_dataset.py makes toy data anew')
    Console().print(table)
    print(f'picture: {options.out}')


if __name__ == '__main__':
    main()
