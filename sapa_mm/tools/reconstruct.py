"""Train and compare the autoencoders of configs/reconstruction, one upsampling each.

Trains the rows, tests them and writes results.md, results.json and curve.png, anew after each row,
to WORK_DIR/DATASET/SETTING. What is finished there is not run again, and a row that was interrupted
goes on from the last epoch that was kept: run the same command again. Run it twice at once, on
other cores or with another --device, and each takes rows that the other has not begun.

  %(prog)s --all --data-root /usr/share/datasets/fashion-mnist --device cuda
  %(prog)s --epochs 3 --rows conv-nearest,conv-sapa-b

A GPU holds all images, replays a captured step, and trains several rows at once. With other than
100 epochs, the learning rate falls at the same shares of the training.
"""

import argparse
import contextlib
import datetime
import functools
import itertools
import json
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from torch import Tensor

from ..reconstruction.training import Training, evaluate
from .arguments import positive, usable_device
from .benchmark.report import environment
from .benchmark.training import quiet_mmengine
from .compare.display import Display
from .compare.runs import locked
from .configs import own_configs
from .errors import ToolError, reported_by
from .output import markdown_table, write_atomically, write_json, write_text

CONFIGS = own_configs() / 'reconstruction'
NAME = 'autoencoder_{row}_1xb100-100e_{dataset}-32x32.py'
RESULT = 'result.json'
CHECKPOINT = 'checkpoint.pth'
METRICS = {
    'PSNR': '{:.2f}',
    'SSIM': '{:.4f}',
    'GlobalSSIM': '{:.4f}',
    'RMSE': '{:.4f}',
    'MAE': '{:.4f}',
}
# So many points a curve has at most, about; a test takes a twentieth of an epoch's time.
POINTS = 20
# Rows side by side on a GPU, where one row's kernels are too small to fill it.
JOBS = 4


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
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        '--rows', help=f'separated by commas (all): {", ".join(find_configs("fashion-mnist"))}'
    )
    rows.add_argument(
        '--all', dest='rows', action='store_const', const=None, help='all rows, as without --rows'
    )
    add('--device', type=device, help='cpu, cuda or cuda:N (cuda where there is one)')
    add('--jobs', type=positive, metavar='N', help=f'rows that train at once on a GPU ({JOBS})')
    add('--work-dir', type=Path, default=Path('work_dirs/reconstruction'), help='%(default)s')
    return parser


def device(text: str) -> torch.device:
    """Parse a device; where it is not there, say what is."""
    try:
        return usable_device(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f'{error}; on CPUs: --device cpu') from error


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Parse and check the command line.

    Returns:
        The options, of which ``rows`` is a dict of configs by row, and besides them ``folder``,
        where the results go, and ``images``, those that train and those that test.
    """
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    with reported_by(parser):
        options.rows = choose_rows(options.dataset, options.rows)
        if options.work_dir.exists() and not options.work_dir.is_dir():
            raise ToolError(f'--work-dir: expected a folder, got the file {options.work_dir}')
        if options.device is None:
            options.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        on_gpu = options.device.type == 'cuda'
        if options.jobs is None:
            options.jobs = JOBS if on_gpu else 1
        if options.jobs > 1 and not on_gpu:
            raise ToolError(
                f'--jobs: expected 1 on CPUs, got {options.jobs}; start the same command again, '
                'and it takes the rows that are left'
            )
        setting = f'{options.epochs}e'
        if options.train_images is not None:
            setting += f'-{options.train_images}'
        options.folder = options.work_dir / options.dataset / setting
        options.images = read_images(options)
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


def read_images(options: argparse.Namespace) -> list[Tensor]:
    """Read the data, of which all rows have the same, before the first row trains.

    Returns:
        The images that train and those that test, (N, 1, 32, 32), uint8.

    Raises:
        ToolError: The data are missing or damaged, or they are too few.
    """
    cfg = read_config(next(iter(options.rows.values())), options)
    try:
        return [DATASETS.build(loader.dataset).images for loader in loaders(cfg)]
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


def milestones(cfg: Config, epochs: int, steps: int) -> list[int]:
    """Return the steps at which the learning rate falls, counted over all epochs.

    They are the same shares of the training as the config's: in whole epochs, a training of three
    would lose or merge them.

    Args:
        cfg: The row's config.
        epochs: How many there are.
        steps: How many steps an epoch has.
    """
    scale = epochs * steps / cfg.train_cfg.max_epochs
    return [round(epoch * scale) for epoch in cfg.param_scheduler.milestones]


def build(cfg: Config, options: argparse.Namespace) -> Training:
    """Build a row's model and what trains it."""
    images, _ = options.images
    seed, batch_size = cfg.randomness.seed, cfg.train_dataloader.batch_size
    torch.manual_seed(seed)
    with quiet_mmengine():
        model = MODELS.build(cfg.model)
        model.init_weights()
    # Convolutions of few channels are faster in this layout, by up to a third on CPUs.
    model.to(options.device, memory_format=torch.channels_last).train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    falls = milestones(cfg, options.epochs, math.ceil(len(images) / batch_size))
    return Training(model, optimizer, images, batch_size, falls, cfg.param_scheduler.gamma, seed)


def run(row: str, options: argparse.Namespace, display: Display) -> Iterator[None]:
    """Train and test one row, unless that is done or another process does it.

    Yields:
        After every step. At the end result.json and the table of all rows are written.
    """
    folder = options.folder / row
    title = f'[{list(options.rows).index(row) + 1}/{len(options.rows)}] {row}'
    folder.mkdir(parents=True, exist_ok=True)
    with display.bar(title) as advance, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except ToolError:
            display.say(f'{title}: another process works on it')
            return
        if (folder / RESULT).is_file():
            display.say(f'{title}: finished before')
            return
        cfg = read_config(options.rows[row], options)
        training = build(cfg, options)
        log: dict[str, Any] = {'curve': [], 'seconds': 0.0, 'process_seconds': 0.0}
        if (folder / CHECKPOINT).is_file():
            state = torch.load(folder / CHECKPOINT, map_location=options.device, weights_only=True)
            training.load_state_dict(state)
            log = state['log']
        display.say(f'{title}: {options.epochs} epochs, {training.epoch} of them done')
        every = max(options.epochs // POINTS, 1)
        while training.epoch < options.epochs:
            started = time.perf_counter(), time.process_time()
            for step in training.epoch_steps():
                if step % 20 == 0:
                    advance((training.epoch + step / training.steps) / options.epochs)
                yield
            log['seconds'] += time.perf_counter() - started[0]
            log['process_seconds'] += time.process_time() - started[1]
            tested = training.epoch % every == 0 or training.epoch == options.epochs
            if tested:
                metrics = evaluate(training.model, options.images[1], cfg.val_dataloader.batch_size)
                log['curve'].append({'epoch': training.epoch, **metrics})
            # An epoch takes minutes of a CPU, and a second of a GPU.
            if tested or options.device.type == 'cpu':
                state = {**training.state_dict(), 'log': log}
                write_atomically(folder / CHECKPOINT, functools.partial(torch.save, state))
                display.say(f'{title}: {describe(training, log, options.epochs)}')
        write_json(folder / RESULT, result_of(row, training, log, options))
    report(options)


def describe(training: Training, log: Mapping[str, Any], epochs: int) -> str:
    """Say in a line how far a row is."""
    seconds = log['seconds'] / training.epoch
    point = log['curve'][-1] if log['curve'] else None
    psnr = f'PSNR {point["PSNR"]:.2f} dB, ' if point and point['epoch'] == training.epoch else ''
    left = datetime.timedelta(seconds=round(seconds * (epochs - training.epoch)))
    return (
        f'epoch {training.epoch}/{epochs}, loss {training.loss:.4f}, {psnr}'
        f'{seconds:.3g} s an epoch, {left} left'
    )


def result_of(
    row: str, training: Training, log: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Return a row's metrics and what they were measured with, as results.json holds them."""
    train, test = options.images
    return {
        'row': row,
        'config': options.rows[row].name,
        **{name: log['curve'][-1][name] for name in METRICS},
        'parameters': sum(p.numel() for p in training.model.parameters()),
        'epochs': options.epochs,
        'train_images': len(train),
        'test_images': len(test),
        # On a GPU the rows beside it have their share of these seconds.
        'jobs': options.jobs,
        'seconds_per_epoch': log['seconds'] / options.epochs,
        'process_seconds_per_epoch': log['process_seconds'] / options.epochs,
        'curve': log['curve'],
        **environment(options.device),
    }


def run_side_by_side(
    runs: Mapping[str, Iterator[None]], jobs: int, device: torch.device
) -> list[str]:
    """Take a step of each of ``jobs`` runs in turn, each in a stream of its own on a GPU.

    Args:
        runs: What yields after every step, by row.
        jobs: How many runs go on at once.
        device: Where; of GPUs it is the current one.

    Returns:
        The rows that failed; the traceback is printed, and the others went on.
    """
    streams = [torch.cuda.Stream() if device.type == 'cuda' else None for _ in range(jobs)]
    waiting = iter(runs.items())
    active = dict(enumerate(itertools.islice(waiting, jobs)))
    failed = []
    while active:
        for place, (row, steps) in list(active.items()):
            stream = streams[place]
            try:
                with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                    next(steps)
                continue
            except StopIteration:
                pass
            except Exception:
                traceback.print_exc()
                failed.append(row)
            following = next(waiting, None)
            if following is None:
                del active[place]
            else:
                active[place] = following
    return failed


def draw_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write a picture of PSNR over epochs, a line a row.

    Args:
        path: File to write; the suffix gives the format.
        curves: Each row's points, with ``epoch`` and ``PSNR``.
    """
    figure = Figure(figsize=(8, 5), dpi=100, layout='constrained')
    axis = figure.subplots()
    for place, (row, points) in enumerate(curves.items()):
        x, y = ([point[key] for point in points] for key in ('epoch', 'PSNR'))
        # There are ten colours.
        axis.plot(x, y, '-o' if place < 10 else '--s', markersize=3, label=row)
    axis.set_xlabel('epochs')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel('PSNR (dB)')
    axis.grid(alpha=0.3)
    figure.legend(loc='outside right upper', fontsize=8)
    figure.savefig(path)


def report(options: argparse.Namespace) -> str:
    """Write results.md, results.json and curve.png of all finished rows; return the table."""
    results = [json.loads(path.read_text()) for path in options.folder.glob(f'*/{RESULT}')]
    ranked = sorted(results, key=lambda result: result['PSNR'], reverse=True)
    rows = [
        [
            result['row'],
            *(form.format(result[name]) for name, form in METRICS.items()),
            f'{result["parameters"]:,}',
            f'{result["seconds_per_epoch"]:.3g}',
        ]
        for result in ranked
    ]
    table = markdown_table(['row', *METRICS, 'parameters', 's / epoch'], rows, texts=1)
    settings = dict.fromkeys(
        f'{r["epochs"]} epochs of {r["train_images"]} images, tested on {r["test_images"]}; '
        f'{r["date"]}, {r["device"]}, torch {r["torch"]}, {r["jobs"]} at once'
        for r in ranked
    )
    head = f'# Image reconstruction, {options.dataset}\n\n' + '\n'.join(f'- {s}' for s in settings)
    write_text(options.folder / 'results.md', f'{head}\n\n{table}\n')
    write_json(options.folder / 'results.json', ranked)
    curves = {result['row']: result['curve'] for result in ranked}
    write_atomically(options.folder / 'curve.png', lambda part: draw_curves(part, curves))
    return table


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the rows that are not finished, and write the table after each."""
    options = parse_arguments(argv, prog)
    on_gpu = options.device.type == 'cuda'
    if on_gpu:
        # Streams are the current device's.
        torch.cuda.set_device(options.device.index or 0)
    options.images = [images.to(options.device) for images in options.images]
    if on_gpu:
        # The streams of the rows do not wait for the copies.
        torch.cuda.synchronize()
    with Display(len(options.rows)) as display:
        runs = {row: run(row, options, display) for row in options.rows}
        failed = run_side_by_side(runs, options.jobs, options.device)
    print(f'{report(options)}\n{options.folder / "results.md"}')
    if failed:
        raise SystemExit(f'failed: {", ".join(failed)}; the same command goes on with them')
