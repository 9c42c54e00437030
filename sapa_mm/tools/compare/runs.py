"""The runs that `compare.py` makes: one training and one test for every upsampler and seed."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..configs import own_script, read_config
from ..errors import ToolError
from ..logs import last_metrics
from ..output import write_json

ITERATION = re.compile(r'Iter\(train\)\s+\[\s*(\d+)/(\d+)\]')
EPOCH = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\]')
GPU_MEMORY = re.compile(r'\bmemory: (\d+)')


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of one variant.

    Attributes:
        upsampler: Name of the upsampler.
        seed: Seed of initialization, data order and augmentation.
        config: The variant's config file, which depends on no other.
        folder: Where the run is kept.
        fingerprint: What tells the run from one of another config.
        epochs: How many the training has, if it counts by them.
    """

    upsampler: str
    seed: int
    config: Path
    folder: Path
    fingerprint: str
    epochs: int | None

    @property
    def name(self) -> str:
        """What the run is called."""
        return f'{self.upsampler}, seed {self.seed}'

    def state(self) -> dict:
        """What is known of the run, finished or not.

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

    def keep(self, state: dict) -> None:
        """Write what is known."""
        write_json(self.folder / 'run.json', state)

    def result(self) -> dict | None:
        """The state of a finished run, or None.

        Raises:
            ToolError: The folder holds a run of another config.
        """
        state = self.state()
        return state if 'metrics' in state else None


def plan(configs: Mapping[str, Path], seeds: Sequence[int], work: Path) -> list[Run]:
    """The runs of a comparison, seed by seed.

    Args:
        configs: Config file of every upsampler.
        seeds: The seeds.
        work: Folder of the comparison.

    Raises:
        ToolError: A config cannot be read, or a folder holds a run of another one.
    """
    runs = []
    for name, path in configs.items():
        epochs = read_config(str(path)).train_cfg.get('max_epochs')
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        runs += [Run(name, s, path, work / name / f'seed{s}', digest, epochs) for s in seeds]
    for run in runs:
        run.state()
    return sorted(runs, key=lambda run: seeds.index(run.seed))


def command(tool: str, run: Run, *arguments: str, folder: Path) -> list[str]:
    """The command line of this project's train.py or test.py."""
    script = [sys.executable, '-W', 'ignore', str(own_script(tool)), str(run.config)]
    options = ['--work-dir', str(folder), '--cfg-options', f'randomness.seed={run.seed}']
    return [*script, *arguments, *options]


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
    """The share of the training that is done, if a line of its log says it."""
    if found := ITERATION.search(line):
        return int(found[1]) / int(found[2])
    if epochs and (found := EPOCH.search(line)):
        return (int(found[1]) - 1 + int(found[2]) / int(found[3])) / epochs
    return None


def stream(
    arguments: list[str],
    log: Path,
    env: dict[str, str],
    lock: int,
    on_line: Callable[[str], None],
    running: set[subprocess.Popen],
) -> int:
    """Run a command, its output going to a log.

    Args:
        arguments: The command.
        log: File to add to.
        env: Its environment.
        lock: Descriptor that it keeps.
        on_line: Called with every line of output.
        running: Where the process is while it runs, so that it can be stopped.

    Returns:
        The most memory that it had, in bytes.

    Raises:
        ToolError: It failed; the message has the end of its log.
    """
    with open(log, 'a', buffering=1) as file:  # by lines
        file.write(f'$ {shlex.join(arguments)}\n')
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env=env,
            pass_fds=[lock],
        )
        running.add(process)
        for line in process.stdout:
            file.write(line)
            on_line(line)
        # As `wait`, but it tells what the process used.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        running.discard(process)
    if process.returncode:
        tail = ''.join(log.read_text(errors='replace').splitlines(keepends=True)[-15:])
        raise ToolError(f'failed with status {process.returncode}; the end of {log}:\n{tail}')
    return usage.ru_maxrss * 1024


def iteration_seconds(folder: Path) -> float | None:
    """The median time of the training iterations that a folder's logs tell, of all attempts."""
    records = [
        json.loads(line)
        for path in folder.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
    ]
    times = [record['time'] for record in records if 'loss' in record and 'time' in record]
    return statistics.median(times) if times else None


def execute(
    run: Run,
    env: dict[str, str],
    on_progress: Callable[[float], None],
    running: set[subprocess.Popen],
    stopped: threading.Event,
) -> dict:
    """Train and test, going on where an earlier attempt stopped.

    Args:
        run: What to run.
        env: Environment of the processes.
        on_progress: Called with the share of the training that is done.
        running: See `stream`.
        stopped: Whether to start nothing more.

    Returns:
        The run's state with what was measured: 'metrics', those of the test by name, 'seconds', of
        a training iteration, 'memory', of the GPU or without one of the process, and 'checkpoint',
        its name in the run's folder.

    Raises:
        ToolError: Training or test failed or was stopped.
    """
    from mmengine.runner import find_latest_checkpoint

    run.folder.mkdir(parents=True, exist_ok=True)
    memory_logged = 0

    def follow(line: str) -> None:
        nonlocal memory_logged
        share = progress_of(line, run.epochs)
        if share is not None:
            on_progress(share)
        if found := GPU_MEMORY.search(line):
            memory_logged = max(memory_logged, int(found[1]) * 2**20)

    with locked(run.folder) as lock:
        state = run.state()
        run.keep(state)  # before anything that a run of another config could resume
        log = run.folder / 'log.txt'
        train = command('train', run, '--resume', folder=run.folder)
        memory = stream(train, log, env, lock, follow, running)
        state['memory'] = max(state['memory'], memory_logged or memory)
        run.keep(state)
        checkpoint = find_latest_checkpoint(str(run.folder))
        if checkpoint is None:
            raise ToolError(f'{run.folder}: training left no checkpoint')
        if stopped.is_set():
            raise ToolError('stopped')
        tested = run.folder / 'test'
        test = command('test', run, checkpoint, folder=tested)
        stream(test, log, env, lock, lambda line: None, running)
        state |= {
            'metrics': last_metrics(tested),
            'seconds': iteration_seconds(run.folder),
            'checkpoint': Path(checkpoint).name,
        }
        run.keep(state)
    return state
