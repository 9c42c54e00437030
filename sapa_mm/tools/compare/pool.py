"""Makes several runs at a time, each in a slot with an environment of its own."""

import os
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ..errors import ToolError
from .display import Display
from .processes import Processes
from .runs import Run, execute
from .variants import METRICS


def usable_cores() -> int:
    """Return how many cores this process may use, where the system tells."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environments(jobs: int, gpus: int) -> list[dict[str, str]]:
    """Return the environment of every slot: this process's, with a GPU or a share of the cores.

    The share is of the cores that this process may use, and no more than OMP_NUM_THREADS.

    Args:
        jobs: How many slots there are.
        gpus: GPUs that this process sees. More slots than that share them.
    """
    common = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    if not gpus:
        threads = max(1, usable_cores() // jobs)
        if (own := os.environ.get('OMP_NUM_THREADS', '')).isdigit():
            threads = min(threads, max(1, int(own)))
        return [{**common, 'OMP_NUM_THREADS': str(threads)} for _ in range(jobs)]
    visible = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
    visible = visible or [str(gpu) for gpu in range(gpus)]
    return [{**common, 'CUDA_VISIBLE_DEVICES': visible[slot % gpus]} for slot in range(jobs)]


class Pool:
    """Makes runs, one at a time in each slot.

    Args:
        slots: Environment of the processes of every slot.
        display: Shows how far the runs are, and what comes of them.
    """

    def __init__(self, slots: Sequence[Mapping[str, str]], display: Display) -> None:
        self._size = len(slots)
        self._free: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._display = display
        self._processes = Processes()
        self._failures: list[str] = []

    def make(self, runs: Sequence[Run]) -> list[str]:
        """Make runs; whatever ends that early, be it a signal's exception, stops all of them.

        Args:
            runs: In the order to start them.

        Returns:
            What failed, a message each.
        """
        with ThreadPoolExecutor(self._size) as threads:
            try:
                futures = [threads.submit(self._make_one, run) for run in runs]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._processes.stop()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return self._failures

    def _make_one(self, run: Run) -> None:
        slot = self._free.get()
        try:
            with self._display.bar(run.name) as advance:
                result = execute(run, slot, advance, self._processes)
                self._display.say(f'{run.name}: {describe_metrics(result["metrics"])}')
        except ToolError as error:
            if not self._processes.stopped:
                self._failures.append(f'{run.name}: {error}')
                what = str(error).splitlines()[0]
                self._display.say(f'{run.name} failed: {what}', 'red')
        finally:
            self._free.put(slot)


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """Return what a test gave in a line: the metrics that reports show, or all if it is none."""
    known = {key: value for key, value in metrics.items() if key in METRICS}
    return ', '.join(
        f'{key} {value:.{METRICS[key].decimals if key in METRICS else 2}f}'
        for key, value in (known or metrics).items()
    )


def make_runs(runs: Sequence[Run], jobs: int, gpus: int) -> list[str]:
    """Make the runs that are not finished, and show how far they are.

    Args:
        runs: In the order to start them.
        jobs: How many at a time.
        gpus: GPUs of this machine.

    Returns:
        What failed, a message each.
    """
    todo = [run for run in runs if run.result() is None]
    with Display(len(todo)) as display:
        display.say(f'{len(runs)} runs, {len(runs) - len(todo)} of them finished before.')
        return Pool(environments(jobs, gpus), display).make(todo)
