"""Measures how fast variants train, and gives all of them the time of the fastest."""

import datetime
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..benchmark.report import environment
from ..configs import read_config, type_name
from ..errors import ToolError
from ..output import write_json, write_text
from .display import Display
from .disturbance import TOLERANCE, differs
from .history import Logging, attempts, is_training, records
from .processes import Processes
from .runs import Run, command, locked, progress_of
from .schedule import length_of, shrink

# A short training has so many iterations, whose times come as means of a few; the first ones, in
# which libraries choose algorithms and caches fill, do not count.
ITERATIONS, WINDOW, WARM_UP = 40, 5, 10
# Each variant trains twice, and up to four times until two of its trainings agree.
ROUNDS, MOST_ROUNDS = 2, 4
NEVER = 10**9


def short_config(path: Path) -> str:
    """Return the text of a config that only measures how fast a variant trains.

    It counts iterations, whatever the variant counts, and neither validates nor saves. A switch
    that an epoch brings, as of YOLOX's augmentation, does not come.

    Args:
        path: The variant's config.
    """
    cfg = read_config(str(path))
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=NEVER)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler = None
    sampler = cfg.train_dataloader.get('sampler') or {}
    if type_name(sampler) == 'DefaultSampler':
        # mmengine's loop of iterations waits two seconds where this one ends, that of epochs not.
        shuffle = sampler.get('shuffle', True)
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=shuffle)
    cfg.log_processor = dict(type='LogProcessor', window_size=WINDOW, by_epoch=False)
    hooks = cfg.get('default_hooks') or {}
    cfg.default_hooks = {
        **hooks,
        'logger': dict(type='LoggerHook', interval=WINDOW),
        'checkpoint': dict(type='CheckpointHook', interval=-1, save_last=False),
    }
    cfg.custom_hooks = [
        hook
        for hook in cfg.get('custom_hooks') or []
        if 'num_last_epochs' not in hook and 'switch_epoch' not in hook
    ]
    return f'# How fast {path.stem} trains, by tools/compare.py.\n{cfg.pretty_text}'


def excess(rounds: Sequence[Sequence[float]]) -> float:
    """Return by what share a variant's second fastest training is slower than its fastest.

    Args:
        rounds: Seconds of an iteration, of two trainings or more.
    """
    medians = sorted(statistics.median(times) for times in rounds)
    return medians[1] / medians[0] - 1


def enough(rounds: Sequence[Sequence[float]]) -> bool:
    """Tell whether a variant has trained often enough for its pace to be known."""
    if len(rounds) < ROUNDS:
        return False
    return len(rounds) >= MOST_ROUNDS or excess(rounds) <= TOLERANCE


def _measure(
    run: Run, env: Mapping[str, str], display: Display, processes: Processes
) -> list[float]:
    """Train shortly; return the seconds of an iteration, in windows after the warm-up."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder) as lock, display.bar(f'pace of {run.upsampler}') as advance:
        for records_file in attempts(run.folder):  # of an earlier round, or one that was killed
            shutil.rmtree(records_file.parent.parent)

        def follow(line: str) -> None:
            share = progress_of(line, None)
            if share is not None:
                advance(share)

        train = command('train', run, folder=run.folder)
        processes.run(train, run.folder / 'log.txt', env, lock, follow)
    return [
        record['time']
        for path in attempts(run.folder)
        for record in records(path)
        if is_training(record) and record['step'] > WARM_UP
    ]


def read_pace(runs: Sequence[Run], device: str | None, work: Path) -> dict[str, Any]:
    """Read what was measured so far.

    Args:
        runs: The runs of the whole schedule, whose fingerprints are the keys.
        device: 'cpu' or 'cuda', on which it has to be measured; None takes either.
        work: Folder of the comparison.

    Returns:
        'device' and 'rounds', lists of seconds of an iteration by the variant's fingerprint, and,
        where something was measured, on what 'machine' and 'date'.
    """
    path = work / 'pace.json'
    known = json.loads(path.read_text()) if path.is_file() else {}
    if not known or device not in (None, known['device']):
        known = {'device': device, 'rounds': {}}
    for run in runs:
        known['rounds'].setdefault(run.fingerprint, [])
    return known


def measure_pace(
    runs: Sequence[Run], device: str, work: Path, env: Mapping[str, str]
) -> dict[str, Any]:
    """Measure the variants that were not measured, one at a time, in turns.

    Args:
        runs: The runs of the whole schedule, the first of each variant of which is measured.
        device: 'cpu' or 'cuda'.
        work: Folder of the comparison; pace.json there is written after every training.
        env: Environment of the trainings.

    Returns:
        As `read_pace` does.

    Raises:
        ToolError: A training failed or was too short.
    """
    known = read_pace(runs, device, work)
    variants: dict[str, Run] = {}
    for run in runs:
        variants.setdefault(run.upsampler, run)
    rounds = known['rounds']
    measured = [rounds[run.fingerprint] for run in variants.values()]
    missing = sum(max(1, ROUNDS - len(found)) for found in measured if not enough(found))
    if not missing:
        return known
    processes = Processes()
    (work / 'pace' / 'configs').mkdir(parents=True, exist_ok=True)
    with Display(missing) as display:
        display.say(f'Short trainings of {len(variants)} variants measure their pace.')
        for turn in range(MOST_ROUNDS):
            for name, run in variants.items():
                if len(rounds[run.fingerprint]) > turn or enough(rounds[run.fingerprint]):
                    continue
                config = work / 'pace' / 'configs' / run.config.name
                write_text(config, short_config(run.config))
                logging = Logging.of(read_config(str(config)))
                short = Run(
                    name, run.seed, config, work / 'pace' / config.stem, run.fingerprint, logging
                )
                try:
                    times = _measure(short, env, display, processes)
                except ToolError as error:
                    raise ToolError(f'the pace of {name} cannot be measured: {error}') from error
                except BaseException:  # such as a signal's
                    processes.stop()
                    raise
                if not times:
                    raise ToolError(f'the pace of {name} cannot be measured: no times in its logs')
                rounds[run.fingerprint].append(times)
                known['machine'] = environment(torch.device(device))['device']
                known['date'] = datetime.date.today().isoformat()
                write_json(work / 'pace.json', known)
                display.say(f'{name}: {statistics.median(times):.3f} s an iteration')
    return known


def seconds_of(runs: Sequence[Run], known: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the median seconds of an iteration of every variant, or None if some are missing.

    Args:
        runs: The runs of the whole schedule.
        known: From `read_pace` or `measure_pace`.
    """
    rounds = {run.upsampler: known['rounds'].get(run.fingerprint, []) for run in runs}
    if not all(enough(found) for found in rounds.values()):
        return None
    return {
        name: statistics.median(time for times in found for time in times)
        for name, found in rounds.items()
    }


def shorter_length(whole: int, fastest: float, seconds: float) -> int:
    """Return the length that a variant trains in the time that the fastest needs for all.

    Args:
        whole: The schedule's length, in iterations or epochs.
        fastest: Seconds of an iteration of the fastest variant.
        seconds: Those of this variant.

    Returns:
        ⌊whole · fastest / seconds⌋, but at least 1.
    """
    return max(1, int(whole * (fastest / seconds)))  # in this order, all of it for the fastest


def write_equal_time(
    configs: Mapping[str, Path], seconds: Mapping[str, float], folder: Path
) -> dict[str, Path]:
    """Write the configs of equal time, each with the schedule that the variant has time for.

    Args:
        configs: Config file of every variant, with the whole schedule.
        seconds: Seconds of an iteration of each.
        folder: Where to write.

    Returns:
        The file of each. One with the whole schedule is a copy, byte for byte.

    Raises:
        ToolError: A config names no length.
    """
    fastest = min(seconds, key=seconds.__getitem__)
    texts = {}
    for name, path in configs.items():
        cfg = read_config(str(path))
        whole = length_of(cfg)
        length = shorter_length(whole, seconds[fastest], seconds[name])
        texts[name] = path.read_text(encoding='utf-8')
        if length < whole:
            shrink(cfg, length)
            head = texts[name].partition('\n')[0].rstrip('.')
            texts[name] = f'{head}, in the time of {fastest}.\n{cfg.pretty_text}'
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / configs[name].name for name in texts}
    for name, path in paths.items():
        write_text(path, texts[name])
    return paths


def describe_pace(
    runs: Sequence[Run], seconds: Mapping[str, float], known: Mapping[str, Any], jobs: int
) -> str:
    """Return the paragraph that says what equal time is.

    Args:
        runs: The runs of the whole schedule.
        seconds: Seconds of an iteration of every variant.
        known: From `measure_pace`.
        jobs: How many trainings run at a time.
    """
    variants = {run.upsampler: run for run in runs}
    fastest = min(seconds, key=seconds.__getitem__)
    logging, least = variants[fastest].logging, seconds[fastest]
    shares = {
        name: shorter_length(logging.length, least, s) * s / (logging.length * least)
        for name, s in seconds.items()
    }
    coarsest = min(shares, key=shares.__getitem__)
    text = (
        f'Equal training time is that which {fastest}, the fastest, needs for {logging.text}. '
        f'Iterations and epochs are whole, so {coarsest} gets {100 * shares[coarsest]:.1f} % of it '
        'and no other gets less. An iteration, with its data, took '
    )
    text += ', '.join(f'{name} {s:.4f} s' for name, s in seconds.items())
    text += (
        f', the median of at least {ROUNDS} short trainings, of {ITERATIONS - WARM_UP} iterations '
        f'after {WARM_UP} to warm up ({known["machine"]}, {known["date"]}).'
    )
    for name, run in variants.items():
        if (by := excess(known['rounds'][run.fingerprint])) > TOLERANCE:
            text += f' No two of those of {name} agree: one took {differs(by)} than another.'
    if jobs > 1:
        text += f' They ran one at a time; of the trainings below {jobs} did.'
    return text
