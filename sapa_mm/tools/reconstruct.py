"""Train and compare the autoencoders of configs/reconstruction, one upsampling each.

Trains every row in turn, tests it and writes results.md and results.json, anew after each row, to
WORK_DIR/DATASET/SETTING. What is finished there is not run again, and a row that was interrupted
goes on from its last epoch: run the same command again.

  %(prog)s --data-root /usr/share/datasets/fashion-mnist
  %(prog)s --epochs 3 --rows conv-nearest,conv-sapa-b

With other than 100 epochs, the learning rate falls at the same shares of the training.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from .arguments import positive
from .benchmark.report import environment
from .configs import own_configs
from .errors import ToolError, reported_by
from .output import markdown_table, write_json, write_text

CONFIGS = own_configs() / 'reconstruction'
NAME = 'autoencoder_{row}_1xb100-100e_{dataset}-32x32.py'
RESULT = 'result.json'
METRICS = {'PSNR': '{:.2f}', 'SSIM': '{:.4f}', 'RMSE': '{:.4f}', 'MAE': '{:.4f}'}


class EpochTimer(Hook):
    """Takes the seconds of every training epoch, of the clock and of this process."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.process: list[float] = []

    def before_train_epoch(self, runner: Runner) -> None:
        """Note when the epoch starts."""
        self.started = time.perf_counter(), time.process_time()

    def after_train_epoch(self, runner: Runner) -> None:
        """Take the seconds since then."""
        self.wall.append(time.perf_counter() - self.started[0])
        self.process.append(time.process_time() - self.started[1])


def find_configs(dataset: str) -> dict[str, Path]:
    """Return the configs of a dataset, ``'fashion-mnist'`` or ``'mnist'``, by row."""
    before, after = NAME.format(row='*', dataset=dataset).split('*')
    paths = sorted(CONFIGS.glob(f'{before}*{after}'))
    return {path.name.removeprefix(before).removesuffix(after): path for path in paths}


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--dataset', choices=['fashion-mnist', 'mnist'], default='fashion-mnist', help='%(default)s'
    )
    add('--data-root', type=Path, help="folder with the IDX files (the configs' data/...)")
    add('--epochs', type=positive, default=100, help='%(default)s')
    add('--train-images', type=positive, help='train on the first so many images (all)')
    add('--rows', help=f'separated by commas (all): {", ".join(find_configs("fashion-mnist"))}')
    add('--work-dir', type=Path, default=Path('work_dirs/reconstruction'), help='%(default)s')
    return parser


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Parse and check the command line.

    Returns:
        The options, of which ``rows`` is a dict of configs by row, and besides them ``folder``,
        where the results go, and ``sizes``, how many images train and test.
    """
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    with reported_by(parser):
        options.rows = choose_rows(options.dataset, options.rows)
        if options.work_dir.exists() and not options.work_dir.is_dir():
            raise ToolError(f'--work-dir: expected a folder, got the file {options.work_dir}')
        setting = f'{options.epochs}e'
        if options.train_images is not None:
            setting += f'-{options.train_images}'
        options.folder = options.work_dir / options.dataset / setting
        options.sizes = count_images(options)
    return options


def choose_rows(dataset: str, names: str | None) -> dict[str, Path]:
    """Return the configs of rows.

    Args:
        dataset: Whose.
        names: What --rows says. None: all.

    Raises:
        ToolError: There is no such row.
    """
    configs = find_configs(dataset)
    rows = list(configs) if names is None else names.split(',')
    unknown = [row for row in rows if row not in configs]
    if unknown:
        raise ToolError(f'--rows: expected some of {", ".join(configs)}, got {", ".join(unknown)}')
    return {row: configs[row] for row in rows}


def count_images(options: argparse.Namespace) -> list[int]:
    """Read the data, of which all rows have the same, before the first row trains.

    Returns:
        How many images train and test.

    Raises:
        ToolError: The data are missing or damaged, or they are too few.
    """
    cfg = read_config(next(iter(options.rows.values())), options)
    try:
        return [len(DATASETS.build(loader.dataset)) for loader in loaders(cfg)]
    except (FileNotFoundError, ValueError) as error:
        raise ToolError(str(error)) from error


def loaders(cfg: Config) -> tuple[ConfigDict, ConfigDict]:
    """Return the configs of the data loaders that train and test."""
    return cfg.train_dataloader, cfg.val_dataloader


def read_config(path: Path, options: argparse.Namespace) -> Config:
    """Return the config at ``path`` with the command line's data."""
    cfg = Config.fromfile(path, import_custom_modules=False)
    cfg.train_dataloader.dataset.num_images = options.train_images
    if options.data_root is not None:
        for loader in loaders(cfg):
            loader.dataset.data_root = str(options.data_root)
    return cfg


def set_epochs(cfg: Config, epochs: int, train_images: int) -> None:
    """Train for ``epochs``; the learning rate falls at the same shares of the iterations."""
    if epochs != cfg.train_cfg.max_epochs:
        # In whole epochs, a training of three would lose or merge steps.
        per_epoch = math.ceil(train_images / cfg.train_dataloader.batch_size)
        scale = per_epoch * epochs / cfg.train_cfg.max_epochs
        scheduler = cfg.param_scheduler
        scheduler.milestones = [round(epoch * scale) for epoch in scheduler.milestones]
        scheduler.by_epoch = False
    cfg.train_cfg.max_epochs = epochs


def run(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and test one row.

    Returns:
        Its metrics and what they were measured with, as results.json holds them.
    """
    cfg = read_config(options.rows[row], options)
    set_epochs(cfg, options.epochs, options.sizes[0])
    # It is tested below, once: a run that was interrupted between the two can catch up on it.
    cfg.train_cfg.val_begin = options.epochs + 1
    cfg.work_dir = str(options.folder / row)
    cfg.resume = True
    runner = Runner.from_cfg(cfg)
    # Convolutions of few channels are faster so, by up to a third on CPUs.
    runner.model.to(memory_format=torch.channels_last)
    timer = EpochTimer()
    runner.register_hook(timer)
    model = runner.train()
    metrics = runner.val()
    device = next(model.parameters()).device
    return {
        'row': row,
        'config': options.rows[row].name,
        **{name: metrics[name] for name in METRICS},
        'parameters': sum(p.numel() for p in model.parameters()),
        'epochs': options.epochs,
        'train_images': options.sizes[0],
        'test_images': options.sizes[1],
        # Epochs before an interruption are not among them.
        'seconds_per_epoch': mean(timer.wall),
        'process_seconds_per_epoch': mean(timer.process),
        **environment(device),
    }


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of nothing."""
    return sum(values) / len(values) if values else None


def report(options: argparse.Namespace) -> str:
    """Write results.md and results.json of all rows that are finished; return the table."""
    results = [json.loads(path.read_text()) for path in options.folder.glob(f'*/{RESULT}')]
    ranked = sorted(results, key=lambda result: result['PSNR'], reverse=True)
    rows = []
    for result in ranked:
        seconds = result['seconds_per_epoch']
        cells = [
            result['row'],
            *(form.format(result[name]) for name, form in METRICS.items()),
            f'{result["parameters"]:,}',
            '' if seconds is None else f'{seconds:.0f}',
        ]
        rows.append(cells)
    table = markdown_table(['row', *METRICS, 'parameters', 's / epoch'], rows)
    settings = dict.fromkeys(
        f'{r["epochs"]} epochs of {r["train_images"]} images, tested on {r["test_images"]}; '
        f'{r["date"]}, {r["device"]}, torch {r["torch"]}'
        for r in ranked
    )
    head = f'# Image reconstruction, {options.dataset}\n\n' + '\n'.join(f'- {s}' for s in settings)
    write_text(options.folder / 'results.md', f'{head}\n\n{table}\n')
    write_json(options.folder / 'results.json', ranked)
    return table


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the rows that are not finished, and write the table after each."""
    options = parse_arguments(argv, prog)
    for number, row in enumerate(options.rows, start=1):
        path = options.folder / row / RESULT
        title = f'[{number}/{len(options.rows)}] {row}'
        if path.is_file():
            print(f'{title}: finished before', flush=True)
        else:
            print(f'{title}: {options.epochs} epochs', flush=True)
            result = run(row, options)
            write_json(path, result)
        table = report(options)
    print(f'{table}\n{options.folder / "results.md"}')
