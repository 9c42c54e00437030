"""Reads from a run's logs how fast it trained, and what its validations gave meanwhile."""

import contextlib
import dataclasses
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

EPOCH = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\]')


class Logging(NamedTuple):
    """Describes a training's schedule, and how its logs count.

    Attributes:
        length: How many epochs or iterations there are.
        epochs: Whether it is epochs.
        window: Over how many iterations the time in a record is the mean.
        validation_epochs: Whether a validation's record has the epoch for its step.
        interval: After how many epochs or iterations a validation comes.
    """

    length: int
    epochs: bool
    window: int
    validation_epochs: bool
    interval: int = 1

    @classmethod
    def of(cls, cfg: Config) -> 'Logging':
        """Read it from a config, where mmengine's defaults hold for what is not there."""
        train = cfg.train_cfg
        processor = cfg.get('log_processor') or {}
        logger = (cfg.get('default_hooks') or {}).get('logger') or {}
        return cls(
            train.get('max_epochs') or train.get('max_iters') or 0,
            bool(train.get('max_epochs')),
            processor.get('window_size', 10),
            logger.get('log_metric_by_epoch', True),
            train.get('val_interval', 1),
        )

    @property
    def text(self) -> str:
        """Return the length with its unit."""
        unit = 'epoch' if self.epochs else 'iteration'
        return f'{self.length:,} {unit}{"" if self.length == 1 else "s"}'


@dataclasses.dataclass(frozen=True)
class History:
    """Tells how a training went.

    Attributes:
        times: Seconds of an iteration by the iteration that they were recorded at, which are the
            mean of the window that ends there.
        steady: Those of them whose window has neither the beginning of an attempt in it nor an
            iteration that waited for a validation's metrics.
        validations: The metrics by the iteration after which they were measured.
        end: The last iteration.
    """

    times: dict[int, float]
    steady: dict[int, float]
    validations: dict[int, dict[str, float]]
    end: int

    def median(self) -> float | None:
        """Return the median time of an iteration in seconds, of the steady ones if there are."""
        times = (self.steady or self.times).values()
        return statistics.median(times) if times else None

    def seconds(self, iteration: int) -> float | None:
        """Return the seconds of training until an iteration, validations excluded.

        Iterations without a steady record take the median of all. Without any record it is None.
        """
        median = self.median()
        if median is None:
            return None
        total, done = 0.0, 0
        for step in sorted(self.times):
            if step >= iteration:
                return total + (iteration - done) * self.steady.get(step, median)
            total += (step - done) * self.steady.get(step, median)
            done = step
        return total + (iteration - done) * median


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of records, a line each; one that a killed process left half is left out."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def attempts(folder: Path) -> list[Path]:
    """List the files with the records of a run's trainings, the first attempt first."""
    return sorted(folder.glob('*/vis_data/scalars.json'))


def is_training(record: dict[str, Any]) -> bool:
    """Tell whether a record is of training iterations."""
    return 'loss' in record and 'time' in record


def logged_memory(folder: Path) -> int:
    """Return the most memory of a GPU that a run's trainings took, in bytes; 0 without one."""
    found = [record.get('memory', 0) for path in attempts(folder) for record in records(path)]
    return max(found, default=0) * 2**20


def epoch_length(folder: Path) -> int | None:
    """Return how many iterations an epoch has, by a run's log.txt."""
    path = folder / 'log.txt'
    found = EPOCH.search(path.read_text(errors='replace')) if path.is_file() else None
    return int(found[3]) if found else None


def read_history(folder: Path, logging: Logging) -> History:
    """Read the logs of all attempts of a run. What a later attempt did again counts.

    Args:
        folder: The run's.
        logging: How its logs count.
    """
    epoch = epoch_length(folder)
    times: dict[int, float] = {}
    steady: dict[int, float] = {}
    validations: dict[int, dict[str, float]] = {}
    for path in attempts(folder):
        first: int | None = None
        interrupted = -1  # the iteration after which the latest validation was
        latest = max(times, default=0)
        for record in records(path):
            step = record.get('step')
            if step is None:
                continue
            if is_training(record):
                latest = step
                times[step] = record['time']
                first = step if first is None else first
                before = step - logging.window  # the last iteration before the record's window
                if step > first and before >= first and before > interrupted:
                    steady[step] = record['time']
                continue
            if logging.validation_epochs and logging.epochs:
                step = step * epoch if epoch else latest
            elif logging.validation_epochs:
                # A loop that counts iterations stays in epoch 0: it is the first one due.
                due = max(latest - 1, interrupted, 0) // logging.interval + 1
                step = min(due * logging.interval, logging.length)
            interrupted = step
            validations[step] = {k: v for k, v in record.items() if isinstance(v, int | float)}
    end = logging.length * (epoch or 0) if logging.epochs else logging.length
    return History(times, steady, validations, end or max([*times, *validations], default=0))
