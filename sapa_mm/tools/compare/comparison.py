"""Makes a comparison, from its configs to its report."""

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ..complexity.command import config_size
from ..configs import is_depth, is_matting, own_script, read_config, reason, type_name
from ..errors import ToolError
from ..output import write_json, write_text
from ..predictions import draw_predictions
from ..swap import swap
from .choices import chosen_config, file_stem
from .disturbance import disturbances
from .history import read_history
from .pace import describe_pace, measure_pace, read_pace, seconds_of, write_equal_time
from .pool import environments, make_runs
from .report import write_report
from .runs import Run, locked, plan, share
from .variants import Variant

# These are finished runs, each with what it measured.
Results = Sequence[tuple[Run, dict[str, Any]]]


def config_stem(name: str) -> str:
    """Return what a comparison is called by default: CONFIG's name without folder and suffix."""
    return Path(name.rpartition('::')[2]).stem


def variant_text(name: str, base: Config, upsampler: str, cfg_options: dict[str, Any]) -> str:
    """Return the text of a variant's config, which depends on no other file.

    Args:
        name: CONFIG.
        base: What was read from there.
        upsampler: Name of the variant's upsampler, as `choices.choice` returns it.
        cfg_options: What --cfg-options says.

    Raises:
        ToolError: The base has no host, no test, or not what --cfg-options names.
    """
    cfg = copy.deepcopy(base)
    upsample_cfg = chosen_config(upsampler)
    overrides = {} if upsample_cfg is None else swap(cfg, upsample_cfg)[0]
    evaluators = cfg.to_dict().get('test_evaluator')
    if not evaluators:
        raise ToolError(f'CONFIG: expected a test_evaluator in {name}, got none')
    if cfg.default_scope == 'mmseg' and not is_matting(cfg):
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        # What shows how sharp boundaries are, of classes or of depth.
        boundaries = 'DepthBoundaryError' if is_depth(cfg) else 'BoundaryIoU'
        if not any(type_name(e) == boundaries for e in evaluators):
            evaluators = [*evaluators, dict(type=boundaries)]
        overrides['test_evaluator'] = evaluators
    try:
        cfg.merge_from_dict(overrides)
        cfg.merge_from_dict(cfg_options)
    except (KeyError, TypeError, ValueError) as error:
        raise ToolError(f'--cfg-options: {reason(error)}') from error
    # The text tells runs apart, and the path of CONFIG may be spelt in many ways.
    return f'# {config_stem(name)} with {upsampler}, by tools/compare.py.\n{cfg.pretty_text}'


def write_variants(
    name: str, upsamplers: Sequence[str], cfg_options: dict[str, Any], folder: Path
) -> dict[str, Path]:
    """Write a config for every upsampler, or none if one of them cannot be made.

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
    base = read_config(name)
    texts = {
        upsampler: variant_text(name, base, upsampler, cfg_options) for upsampler in upsamplers
    }
    folder.mkdir(parents=True, exist_ok=True)
    configs = {upsampler: folder / f'{file_stem(upsampler)}.py' for upsampler in upsamplers}
    for upsampler, path in configs.items():
        write_text(path, texts[upsampler])
    return configs


def measure_cost(
    runs: Sequence[Run], size: Sequence[int], device: str, work: Path, report_only: bool
) -> dict[str, dict[str, Any]]:
    """Count and time all variants by `benchmark.py --models`, unless that was done before.

    Args:
        runs: The runs.
        size: (H, W) of the image.
        device: Where to time.
        work: Folder of the comparison, which keeps the figures.
        report_only: Whether figures of another device are as good, being those of the runs.

    Returns:
        The row of each.

    Raises:
        ToolError: It failed.
    """
    variants = {run.upsampler: run for run in runs}
    key = [device, *map(str, size), *(run.fingerprint for run in variants.values())]
    path = work / 'cost.json'
    known = json.loads(path.read_text()) if path.is_file() else {}
    if report_only and 'key' in known:
        key[0] = known['key'][0]
    if known.get('key') != key:
        listed = [str(run.config) for run in variants.values()]
        arguments = ['--models', *listed, '--image-size', *map(str, size), '--device', device]
        command = [sys.executable, '-W', 'ignore', str(own_script('benchmark')), *arguments]
        raw = work / 'benchmark.json'
        found = subprocess.run(
            [*command, '--json', str(raw)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if found.returncode:
            raise ToolError(f'the cost cannot be measured:\n{found.stderr[-2000:]}')
        known = {'key': key, 'rows': json.loads(raw.read_text())['models']}
        write_json(path, known)
    return dict(zip(variants, known['rows'], strict=True))


def draw(path: Path, finished: Results, count: int, device: str) -> None:
    """Draw what a finished run of each upsampler predicts.

    Args:
        path: File to write.
        finished: The finished runs, at least one; the first of an upsampler predicts.
        count: How many images there are.
        device: Where to predict.

    Raises:
        ToolError: It cannot be drawn.
    """
    models: dict[str, tuple[Config, str]] = {}
    for run, result in finished:
        if run.upsampler not in models:
            cfg = read_config(str(run.config))
            models[run.upsampler] = cfg, str(run.folder / result['checkpoint'])
    try:
        draw_predictions(path, models, count, device)
    except Exception as error:  # of whatever kind: data and models are the user's
        what = str(error) if isinstance(error, ToolError) else reason(error)
        raise ToolError(f'{path.name} cannot be drawn: {what}') from error


def describe(config: str, runs: Sequence[Run], size: Sequence[int]) -> list[str]:
    """Return the paragraphs that say what was run where, and what the figures are."""
    finished = [result for run in runs if (result := run.result())]
    places = dict.fromkeys(
        f'{info["date"]}, {info["device"]}, torch {info["torch"]}'
        for result in finished
        if (info := result.get('environment'))
    )
    return [
        f'Base config: `{config}`. {len(finished)} of {len(runs)} runs are finished'
        f'{"".join(f"; {place}" for place in places)}.',
        f'Mean ± standard deviation over the seeds, which are the same for all. GFLOPs '
        f'(multiply-adds) and latency are of one image of {size[0]}x{size[1]}, the latency in '
        'float32, all models in turns; in brackets, times the first. Memory is the most that '
        'training took, of the GPU or without one of the process; an iteration is the median one.',
        'Differences are of runs with the same seed. Their mean has a two-sided 95 % interval by '
        "Student's t; it is a gain or a loss where that excludes 0. Nothing corrects for how many "
        'variants there are.',
    ]


def plan_equal_time(
    options: argparse.Namespace,
    configs: Mapping[str, Path],
    whole: Sequence[Run],
    device: str,
    work: Path,
) -> tuple[list[Run], str]:
    """Measure how fast the variants train, unless only a report is asked for, and plan by that.

    Args:
        options: The options.
        configs: Config file of every upsampler, with the whole schedule.
        whole: The runs of those.
        device: Where to train.
        work: Folder of the comparison.

    Returns:
        The runs with equal time, and a paragraph on them.

    Raises:
        ToolError: The pace cannot be measured, or was not and is not to be.
    """
    gpus = torch.cuda.device_count()
    jobs = options.jobs or max(gpus, 1)
    if options.report_only:
        known = read_pace(whole, None, work)
    else:
        known = measure_pace(whole, device, work, environments(jobs, gpus)[0])
    seconds = seconds_of(whole, known)
    if seconds is None:
        raise ToolError('equal time is not reported: how fast all train was not measured yet')
    folder = work / 'equal-time'
    paths = write_equal_time(configs, seconds, folder / 'configs')
    runs = plan(paths, options.seeds, folder, equal_time=True)
    return runs, describe_pace(whole, seconds, known, jobs)


def describe_variants(runs: Sequence[Run], cost: Mapping[str, dict[str, Any]]) -> list[Variant]:
    """Return what is known of each variant.

    Args:
        runs: All of a budget.
        cost: The row of each variant.
    """
    variants = []
    for name in cost:
        of_it = [run for run in runs if run.upsampler == name]
        results = {run.seed: result for run in of_it if (result := run.result())}
        histories = {
            run.seed: read_history(run.folder, run.logging) for run in of_it if run.seed in results
        }
        length = of_it[0].logging.text
        variants.append(
            Variant(name, results, cost[name], histories, length, disturbances(histories))
        )
    return variants


def compare(options: argparse.Namespace) -> int:
    """Make a comparison, in a folder that nobody else works in meanwhile.

    Args:
        options: The options.

    Returns:
        Exit status: 1 if a run failed.

    Raises:
        ToolError: Before any run, if one of them cannot be made.
    """
    name = config_stem(options.config)
    work = (options.work_dir or Path('work_dirs/compare') / name).absolute()
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        return compare_in(work, name, options)


def compare_in(work: Path, name: str, options: argparse.Namespace) -> int:
    """Make a comparison called ``name`` in a folder that is locked; see `compare`."""
    gpus = torch.cuda.device_count()
    device = 'cuda' if gpus else 'cpu'
    configs = write_variants(
        options.config, options.upsamplers, options.cfg_options, work / 'configs'
    )
    size = options.image_size or config_size(read_config(str(next(iter(configs.values())))))
    if size is None:
        raise ToolError(f'CONFIG: {options.config} names no size of its images; give --image-size')
    whole = plan(configs, options.seeds, work)
    cost = measure_cost(whole, size, device, work, options.report_only)

    failures, more_notes = [], []
    budgets = {'iterations': whole} if 'iterations' in options.budget else {}
    if 'time' in options.budget:
        try:
            timed, note = plan_equal_time(options, configs, whole, device, work)
        except ToolError as error:
            if not budgets:
                raise
            failures.append(str(error))
        else:
            whole, timed = share(whole, timed, prefer_timed=not budgets)
            budgets = {budget: whole for budget in budgets} | {'time': timed}
            more_notes.append(note)
    # Seed by seed, each once.
    runs = list(dict.fromkeys(run for both in zip(*budgets.values(), strict=True) for run in both))
    if not options.report_only:
        failures += make_runs(runs, options.jobs or max(gpus, 1), gpus)
    pictures = False
    for planned in budgets.values():
        finished = [(run, result) for run in planned if (result := run.result())]
        if finished:
            try:
                draw(work / 'pictures.png', finished, options.images, device)
                pictures = True
            except ToolError as error:
                failures.append(str(error))
            break

    variants = {budget: describe_variants(planned, cost) for budget, planned in budgets.items()}
    notes = describe(options.config, runs, size) + more_notes
    title = f'Upsamplers in {name}'
    baseline = options.baseline or 'bilinear'
    for path in write_report(work, title, notes, variants, pictures, baseline):
        print(path)
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))
