"""Compare upsamplers in one model: train, test and report them all, with several seeds.

  %(prog)s mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py
  %(prog)s my_detector.py --upsamplers nearest,carafe,sapa-b --seeds 0 1 --jobs 2

CONFIG is a path or the name of a config that a framework installs, of a model whose features are
upsampled by a host of this project (tools/swap_upsampler.py says which). Every upsampler gets a
config of its own that differs in nothing else, every seed a training and a test. A comparison that
was stopped, by whatever, goes on where it was when it is started again: what is finished is kept,
and a training resumes from its last checkpoint. The report, of what is finished, is in the work dir
as report.md and report.html.
"""

import argparse
import copy
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from ..arguments import positive
from ..configs import own_script, read_config, reason
from ..errors import ToolError
from ..output import write_json, write_text
from ..presets import upsampler_config, upsampler_name, upsampler_names
from ..swap import swap

UPSAMPLERS = ('nearest', 'bilinear', 'carafe', 'index-net', 'a2u', 'sapa-i', 'sapa-b', 'sapa-g')


def names(text: str) -> list[str]:
    """Parse names of upsamplers, separated by commas."""
    found = [upsampler_name(name) for name in text.split(',')]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f'expected every upsampler once, got {text}')
    return found


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', metavar='CONFIG', help='config of a segmentor or a detector')
    add(
        '--upsamplers',
        type=names,
        default=list(UPSAMPLERS),
        metavar='NAME,...',
        help=f'some of {", ".join(upsampler_names())} ({",".join(UPSAMPLERS)})',
    )
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='seeds (0 1 2)')
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


def write_variants(
    name: str, upsamplers: Sequence[str], cfg_options: dict, folder: Path
) -> dict[str, Path]:
    """Write a config for every upsampler, each of which depends on no other file.

    Args:
        name: CONFIG.
        upsamplers: Names.
        cfg_options: What --cfg-options says.
        folder: Where.

    Returns:
        The file of each.

    Raises:
        ToolError: CONFIG cannot be read, has no host, no test, or not what --cfg-options names.
    """
    base, texts = read_config(name), {}
    for upsampler in upsamplers:
        cfg = copy.deepcopy(base)
        overrides, _ = swap(cfg, upsampler_config(upsampler))
        evaluators = cfg.to_dict().get('test_evaluator')
        if not evaluators:
            raise ToolError(f'CONFIG: expected a test_evaluator in {name}, got none')
        if cfg.default_scope == 'mmseg':
            evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
            if not any(e['type'] == 'BoundaryIoU' for e in evaluators):
                evaluators = [*evaluators, dict(type='BoundaryIoU')]
            overrides['test_evaluator'] = evaluators
        try:
            cfg.merge_from_dict(overrides)
            cfg.merge_from_dict(cfg_options)
        except (KeyError, TypeError, ValueError) as error:
            raise ToolError(f'--cfg-options: {reason(error)}') from error
        texts[upsampler] = f'# {name} with {upsampler}, by tools/compare.py.\n{cfg.pretty_text}'
    folder.mkdir(parents=True, exist_ok=True)
    for upsampler, text in texts.items():
        path = folder / f'{upsampler}.py'
        write_text(path, text)
    return {upsampler: folder / f'{upsampler}.py' for upsampler in texts}


def measure_cost(runs: Sequence, size: Sequence[int], device: str, work: Path) -> dict[str, dict]:
    """Count and time all variants by `benchmark.py --models`, unless that was done before.

    Args:
        runs: The runs.
        size: (H, W) of the image.
        device: Where to time.
        work: Folder of the comparison, which keeps the figures.

    Returns:
        The row of each.

    Raises:
        ToolError: It failed.
    """
    variants = {run.upsampler: run for run in runs}
    key = [device, *map(str, size), *(run.fingerprint for run in variants.values())]
    path = work / 'cost.json'
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.get('key') != key:
        listed = [str(run.config) for run in variants.values()]
        arguments = ['--models', *listed, '--image-size', *map(str, size), '--device', device]
        command = [sys.executable, '-W', 'ignore', own_script('benchmark'), *arguments]
        raw = work / 'benchmark.json'
        found = subprocess.run(
            [*command, '--json', raw], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if found.returncode:
            raise ToolError(f'the cost cannot be measured:\n{found.stderr[-2000:]}')
        known = {'key': key, 'rows': json.loads(raw.read_text())['models']}
        write_json(path, known)
    return dict(zip(variants, known['rows'], strict=True))


def run_all(runs: Sequence, jobs: int, gpus: int) -> list[str]:
    """Make the runs that are not finished, and show how far they are.

    Args:
        runs: In the order to start them.
        jobs: How many at a time.
        gpus: GPUs of this machine.

    Returns:
        What failed, a message each.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    from .runs import execute

    todo = [run for run in runs if run.result() is None]
    console = Console(highlight=False, markup=False)
    console.print(f'{len(runs)} runs, {len(runs) - len(todo)} of them finished before.')
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(jobs):
        slots.put(slot)
    running: set[subprocess.Popen] = set()
    stopped = threading.Event()
    failures: list[str] = []
    columns = ('{task.description}', BarColumn(), '{task.percentage:>3.0f}%', TimeRemainingColumn())

    with Progress(*columns, console=console, transient=True) as progress:
        total = progress.add_task('all runs', total=len(todo))

        def work(run) -> None:
            if stopped.is_set():
                return
            slot = slots.get()
            task = progress.add_task(run.name, total=1)
            env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
            if gpus:
                visible = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
                env['CUDA_VISIBLE_DEVICES'] = (
                    [v for v in visible if v] or list(map(str, range(gpus)))
                )[slot % gpus]
            else:
                env['OMP_NUM_THREADS'] = str(max(1, (os.cpu_count() or 1) // jobs))
            before = 0.0

            def advance(share: float) -> None:
                nonlocal before
                progress.update(task, completed=share)
                progress.advance(total, max(share - before, 0))
                before = max(share, before)

            try:
                result = execute(run, env, advance, running, stopped)
                shown = ', '.join(f'{k} {v:.2f}' for k, v in result['metrics'].items())
                console.print(f'{run.name}: {shown}', soft_wrap=True)
            except ToolError as error:
                if not stopped.is_set():
                    failures.append(f'{run.name}: {error}')
                    what = str(error).splitlines()[0]
                    console.print(f'{run.name} failed: {what}', style='red', soft_wrap=True)
            finally:
                advance(1.0)
                progress.remove_task(task)
                slots.put(slot)

        with ThreadPoolExecutor(jobs) as pool:
            waiting = {pool.submit(work, run) for run in todo}
            try:
                while waiting:
                    finished, waiting = wait(waiting, 0.5, FIRST_COMPLETED)
                    for future in finished:
                        future.result()
            except BaseException:
                stopped.set()
                for process in list(running):
                    process.terminate()
                raise
    return failures


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write the configs, make the runs, write the report.

    Returns:
        Exit status: 1 if a run failed.
    """
    warnings.filterwarnings('ignore', 'pkg_resources', UserWarning)  # mmengine's
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f'argument --seeds: expected every seed once, got {options.seeds}')
    # So that SIGTERM stops what runs, too.
    before_us = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    stem = Path(options.config.rpartition('::')[2]).stem
    work = (options.work_dir or Path('work_dirs/compare') / stem).absolute()
    try:
        check_packages()
        # Before a folder is made.
        swap(read_config(options.config), upsampler_config(options.upsamplers[0]))
        from .runs import locked

        work.mkdir(parents=True, exist_ok=True)
        with locked(work):
            return compare(options, stem, work)
    except ToolError as error:
        parser.error(str(error))
    finally:
        signal.signal(signal.SIGTERM, before_us)


def check_packages() -> None:
    """Raise ToolError unless what the report needs is installed."""
    missing = [
        name for name in ('matplotlib', 'rich', 'markdown_it') if not importlib.util.find_spec(name)
    ]
    if missing:
        raise ToolError(f'{", ".join(missing)} missing: pip install matplotlib rich')


def compare(options: argparse.Namespace, stem: str, work: Path) -> int:
    """Do what the options say in a folder that nobody else works in.

    Args:
        options: The options.
        stem: What to call the comparison.
        work: The folder.

    Returns:
        Exit status: 1 if a run failed.

    Raises:
        ToolError: Before any run, if one of them cannot be made.
    """
    import torch

    from ..benchmark.report import environment
    from ..complexity.command import config_size
    from .report import Variant, write_report
    from .runs import plan

    gpus = torch.cuda.device_count()
    device = 'cuda' if gpus else 'cpu'
    configs = write_variants(
        options.config, options.upsamplers, options.cfg_options, work / 'configs'
    )
    size = options.image_size or config_size(read_config(str(next(iter(configs.values())))))
    if size is None:
        raise ToolError(f'CONFIG: {options.config} names no size of its images; give --image-size')
    runs = plan(configs, options.seeds, work)
    cost = measure_cost(runs, list(size), device, work)
    failures = []
    if not options.report_only:
        failures = run_all(runs, options.jobs or max(gpus, 1), gpus)
    finished = [(run, result) for run in runs if (result := run.result())]
    variants = [
        Variant(name, {run.seed: r for run, r in finished if run.upsampler == name}, cost[name])
        for name in options.upsamplers
    ]
    checkpoints: dict[str, Path] = {}
    for run, result in finished:
        checkpoints.setdefault(run.upsampler, run.folder / result['checkpoint'])
    pictures = False
    if checkpoints:
        from ..predictions import draw_predictions

        models = {
            name: (read_config(str(configs[name])), str(checkpoints[name])) for name in checkpoints
        }
        try:
            draw_predictions(work / 'pictures.png', models, options.images, device)
            pictures = True
        except Exception as error:  # of whatever kind: data and models are the user's
            failures.append(f'pictures.png cannot be drawn: {reason(error)}')
    info = environment(torch.device(device))
    notes = [
        f'Base config: `{options.config}`. {len(finished)} of {len(runs)} runs are finished. '
        f'{info["date"]}, {info["device"]}, torch {info["torch"]}.',
        f'Mean ± standard deviation over the seeds, which are the same for all. GFLOPs '
        f'(multiply-adds) and latency are of one image of {size[0]}x{size[1]}, the latency in '
        'float32, all models in turns; in brackets, times the first. Memory is the most that '
        'training took, of the GPU or without one of the process; an iteration is the median one.',
    ]
    for path in write_report(work, f'Upsamplers in {stem}', notes, variants, pictures):
        print(path)
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))
