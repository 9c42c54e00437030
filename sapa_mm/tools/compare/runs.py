"""Makes a run of `compare.py`: one training and one test of an upsampler with a seed."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import find_latest_checkpoint

from ..benchmark.report import environment
from ..configs import own_script, read_config
from ..errors import ToolError
from ..logs import last_metrics
from ..output import write_json
from .history import EPOCH, Logging, logged_memory, read_history
from .processes import Processes

ITERATION = re.compile(r'Iter\(train\)\s+\[\s*(\d+)/(\d+)\]')


@dataclasses.dataclass(frozen=True)
class Run:
    """Describes one training of one variant.

    Attributes:
        upsampler: Name of the upsampler.
        seed: Seed of initialization, data order and augmentation.
        config: The variant's config file, which depends on no other.
        folder: Where the run is kept.
        fingerprint: What tells the run from one of another config.
        logging: How long the training is, and how its logs count.
        equal_time: Whether it gets the time of the fastest, instead of the whole schedule.
    """

    upsampler: str
    seed: int
    config: Path
    folder: Path
    fingerprint: str
    logging: Logging
    equal_time: bool = False

    @property
    def name(self) -> str:
        """Return what messages call the run."""
        name = f'{self.upsampler}, seed {self.seed}'
        return f'{name}, equal time' if self.equal_time else name

    def state(self) -> dict[str, Any]:
        """Read what is known of the run, finished or not.

        Returns:
            'fingerprint', 'memory' (the most that its trainings took, in bytes) and, of a finished
            one, what `execute` measured.

        Raises:
            ToolError: The folder holds a run of another config.
        """
        path = self.folder / 'run.json'
        if not path.is_file():
            return {'fingerprint': self.fingerprint, 'memory': 0}
        state = json.loads(path.read_text())
        if state['fingerprint'] != self.fingerprint:
            raise ToolError(
                f'{self.folder} holds a run of another config or other options; give another '
                '--work-dir, or delete that folder'
            )
        return state

    def keep(self, state: dict[str, Any]) -> None:
        """Write what is known of the run."""
        write_json(self.folder / 'run.json', state)

    def result(self) -> dict[str, Any] | None:
        """Return the state of a finished run, or None.

        Raises:
            ToolError: The folder holds a run of another config.
        """
        state = self.state()
        return state if 'metrics' in state else None


def plan(
    configs: Mapping[str, Path], seeds: Sequence[int], work: Path, equal_time: bool = False
) -> list[Run]:
    """List the runs of a comparison, seed by seed.

    Args:
        configs: Config file of every upsampler.
        seeds: The seeds.
        work: Folder of the runs.
        equal_time: Whether the configs are those of equal time.

    Raises:
        ToolError: A config cannot be read, or a folder holds a run of another one.
    """
    runs = []
    for name, path in configs.items():
        logging = Logging.of(read_config(str(path)))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        runs += [
            Run(name, seed, path, work / path.stem / f'seed{seed}', digest, logging, equal_time)
            for seed in seeds
        ]
    for run in runs:
        run.state()
    return sorted(runs, key=lambda run: seeds.index(run.seed))


def share(
    whole: Sequence[Run], timed: Sequence[Run], prefer_timed: bool
) -> tuple[list[Run], list[Run]]:
    """Let a run with the whole schedule serve both budgets, instead of being made twice.

    Args:
        whole: Runs of equal iterations.
        timed: Runs of equal time, of the same variants and seeds in the same order.
        prefer_timed: Whether it is made as one of equal time, if neither was begun.

    Returns:
        Both, where runs of the same config are the same: the one that was begun, if one was.
    """
    shared = []
    for pair in zip(whole, timed, strict=True):
        one, other = pair[::-1] if prefer_timed else pair
        begun = (other.folder / 'run.json').is_file() and not (one.folder / 'run.json').is_file()
        kept = other if begun else one
        shared.append((kept, kept) if one.fingerprint == other.fingerprint else pair)
    return [one for one, _ in shared], [other for _, other in shared]


def command(tool: str, run: Run, *arguments: str, folder: Path) -> list[str]:
    """Return a command line of this project's train.py or test.py, which may get cfg-options."""
    script = [sys.executable, '-W', 'ignore', str(own_script(tool)), str(run.config)]
    options = ['--work-dir', str(folder), *arguments]
    return [*script, *options, '--cfg-options', f'randomness.seed={run.seed}']


def training(run: Run) -> list[str]:
    """Return the command line that trains, from the run's last checkpoint if there is one.

    A `last_checkpoint` whose file is gone, as where an older version was killed while it replaced
    the only one, is removed.
    """
    begin = command('train', run, folder=run.folder)
    saving = (read_config(str(run.config)).get('default_hooks') or {}).get('checkpoint') or {}
    if saving.get('max_keep_ckpts') == 1:
        # mmengine removes the old one before it writes the new one; a kill may come between.
        begin.append('default_hooks.checkpoint.max_keep_ckpts=2')
    last = run.folder / 'last_checkpoint'
    name = last.read_text().strip() if last.is_file() else ''
    if not name or not Path(name).exists():
        last.unlink(missing_ok=True)
        return begin
    # With a `load_from` it is that file which mmengine would resume.
    return [*begin, 'load_from=None', '--resume']


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a run's folder, together with every process that inherits the descriptor.

    Raises:
        ToolError: A process, be it of a comparison that was killed, still works there.
    """
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ToolError(f'{folder}: another process still works there') from error
        yield file.fileno()


def progress_of(line: str, epochs: int | None) -> float | None:
    """Return the share of the training that is done, if a line of its log says it."""
    if found := ITERATION.search(line):
        return int(found[1]) / int(found[2])
    if epochs and (found := EPOCH.search(line)):
        return (int(found[1]) - 1 + int(found[2]) / int(found[3])) / epochs
    return None


def execute(
    run: Run,
    env: Mapping[str, str],
    on_progress: Callable[[float], None],
    processes: Processes,
) -> dict[str, Any]:
    """Train and test, going on where an earlier attempt stopped.

    Args:
        run: What to run.
        env: Environment of the processes.
        on_progress: Called with the share of the training that is done.
        processes: What runs and stops the processes.

    Returns:
        The run's state with what was measured: 'metrics', those of the test by name, 'seconds', the
        median of a training iteration, 'memory', of the GPU or without one of the process, and
        'checkpoint', its name in the run's folder, and the 'environment' it was measured in.

    Raises:
        ToolError: Training or test failed or was stopped.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    on_gpu = torch.cuda.is_available()

    def follow(line: str) -> None:
        share = progress_of(line, run.logging.length if run.logging.epochs else None)
        if share is not None:
            on_progress(share)

    with locked(run.folder) as lock:
        state = run.state()
        run.keep(state)  # before anything that a run of another config could resume
        log = run.folder / 'log.txt'
        memory = processes.run(training(run), log, env, lock, follow)
        if on_gpu:
            memory = logged_memory(run.folder)
        state['memory'] = max(state['memory'], memory)
        run.keep(state)
        checkpoint = find_latest_checkpoint(str(run.folder))
        if checkpoint is None:
            raise ToolError(f'{run.folder}: training left no checkpoint')
        tested = run.folder / 'test'
        test = command('test', run, checkpoint, folder=tested)
        processes.run(test, log, env, lock, lambda line: None)
        state |= {
            'metrics': last_metrics(tested),
            'seconds': read_history(run.folder, run.logging).median(),
            'checkpoint': Path(checkpoint).name,
            'environment': environment(torch.device('cuda' if on_gpu else 'cpu')),
        }
        run.keep(state)
    return state
