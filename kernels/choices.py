"""Which entry of its table a kind of problem runs with: timed once, and kept on disk."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import triton

from . import tuning
from .tuning import Problem

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger('sapa_mm')

#: So many kinds of sizes are timed in a process, of one kernel with the same options, dtype, layout
#: and channels. Multi-scale detection on a feature pyramid has 4 to 8 (tests/kernels/
#: test_choices.py counts them).
MAX_TUNED = 12
#: Seconds to wait for a process that writes, which takes it milliseconds.
LOCK_TIMEOUT = 5.0

Run = Callable[[], None]


def cache_folder() -> Path | None:
    """Return the folder of what is kept, which need not exist; None if there is no home folder.

    It is ``$SAPA_MM_CACHE``, or else ``sapa_mm`` in the user's cache folder: ``$XDG_CACHE_HOME``,
    ``~/.cache``, on macOS ``~/Library/Caches``, on Windows ``%LOCALAPPDATA%``.
    """
    if folder := os.environ.get('SAPA_MM_CACHE'):
        return Path(folder).absolute()
    if folder := os.environ.get('XDG_CACHE_HOME'):
        return Path(folder).absolute() / 'sapa_mm'
    if sys.platform == 'win32' and (folder := os.environ.get('LOCALAPPDATA')):
        return Path(folder) / 'sapa_mm'
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ('Library/Caches' if sys.platform == 'darwin' else '.cache') / 'sapa_mm'


def sources_digest(folder: Path = Path(__file__).parent) -> str:
    """Return a digest of the kernels and their tables: an edited kernel is timed anew."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob('*.py')):
        digest.update(path.name.encode() + b'\0' + path.read_bytes() + b'\0')
    return digest.hexdigest()


@functools.cache
def of_device(device: torch.device) -> 'Choices':
    """Return the choices of a GPU."""
    return Choices(
        cache_folder(),
        device=torch.cuda.get_device_name(device),
        capability='{}.{}'.format(*torch.cuda.get_device_capability(device)),
        torch=torch.__version__,
        triton=triton.__version__,
        kernels=sources_digest(),
    )


class Choices:
    """The choices of a kind of device, in memory and in a file that all processes share.

    Nobody waits for another process that times kernels: its device may be waiting for a collective
    operation in which this process has yet to take part. So processes that start together may time
    the same problem, and all of them take the choice that was written first.

    Args:
        folder: The folder of the file. Without one nothing is kept beyond the process.
        fastest: What times several launches and returns the index of the fastest, or None if none
            could run.
        **made_for: What choices depend on besides the problem, by name: device and versions.
    """

    def __init__(
        self,
        folder: Path | None,
        fastest: Callable[[list[Run]], int | None] = tuning.fastest,
        **made_for: str,
    ):
        self._made_for = made_for
        self._fastest = fastest
        self._known: dict[str, int] = {}
        self._tuned: Counter[str] = Counter()
        self._writable = folder is not None
        self._warned = False
        digest = hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()
        device = re.sub(r'\W+', '-', made_for.get('device', 'device'))
        self.path = None if folder is None else folder / f'{device}-{digest[:16]}.json'

    def choose(
        self,
        kernel: str,
        constants: Sequence[tuple[str, object]],
        problem: Problem,
        runs: list[Run],
    ) -> int:
        """Return the index of the launch that suits a kind of problem.

        It is the one that is known from this or another process, or else the fastest. If
        `MAX_TUNED` kinds of sizes have been timed it is that of the known problem which is nearest
        in size, or the first if none has the same tiles.

        Args:
            kernel: The kernel's name.
            constants: Its options.
            problem: The kind of problem.
            runs: A launch for each entry that `tuning.candidates` gives for the problem.
        """
        key = _key(kernel, constants, problem)
        if key not in self._known:
            self._known = self._read() | self._known
        known = self._known.get(key, len(runs))
        if known < len(runs):
            return known
        of_any_size = problem._replace(slots=(0, 0), exact=False, extent=(0, 0), magnitude=0)
        family = _key(kernel, constants, of_any_size)
        if self._tuned[family] >= MAX_TUNED:
            keys = (_key(kernel, constants, near) for near in nearest(problem))
            found = (self._known[near] for near in keys if near in self._known)
            return next((choice for choice in found if choice < len(runs)), 0)
        _announce(self.path)
        self._tuned[family] += 1
        choice = self._fastest(runs)
        if choice is None:
            return 0  # where memory ran out, say, there may be more the next time
        self._known[key] = self._keep(key, choice, len(runs))
        return self._known[key]

    def _keep(self, key: str, choice: int, count: int) -> int:
        """Write a choice unless there is one, of so many; return the one that holds."""
        if not self._writable:
            return choice
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix('.lock')):
                found = self._read()
                if found.get(key, count) < count:
                    return found[key]
                content = dict(made_for=self._made_for, choices=found | {key: choice})
                _replace(self.path, json.dumps(content, indent=1, sort_keys=True))
        except OSError as error:
            self._writable = False
            logger.warning(
                'The choice of kernels cannot be kept for the next process (%s); SAPA_MM_CACHE '
                'may name a folder that can be written.',
                error,
            )
        return choice

    def _read(self) -> dict[str, int]:
        """Return what the file says; nothing if there is none, or none of these versions."""
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            if content['made_for'] != self._made_for:
                raise ValueError(f'it is for {content["made_for"]}')
            choices = content['choices'].items()
            if not all(type(choice) is int and choice >= 0 for _, choice in choices):
                raise ValueError('its choices are no indices')
            return dict(choices)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if not self._warned:
                self._warned = True
                logger.warning(
                    'The choices of kernels in %s cannot be read and are made anew: %s: %s',
                    self.path,
                    type(error).__name__,
                    error,
                )
            return {}


def nearest(problem: Problem) -> Iterator[Problem]:
    """Yield the problems that have the same entries, a problem itself first, then by size.

    The blocks of an entry depend neither on the number of pixels nor on whether all cells have as
    many.
    """
    for distance in range(32):
        for magnitude in sorted({problem.magnitude - distance, problem.magnitude + distance}):
            for exact in (problem.exact, not problem.exact):
                yield problem._replace(magnitude=magnitude, exact=exact)


def _key(kernel: str, constants: Sequence[tuple[str, object]], problem: Problem) -> str:
    named = {**problem._asdict(), **dict(constants)}
    return ' '.join([kernel, *(f'{name}={value}' for name, value in named.items())])


@functools.cache
def _announce(path: Path | None) -> None:
    """Say once why the first calls take long."""
    if not logger.hasHandlers():
        # Who has not set logging up sees it too.
        logger.addHandler(logging.StreamHandler())
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    logger.info(
        'sapa_mm compiles its kernels and times their variants, which takes some seconds for each '
        'kind of problem (dtype, layout, channels, window, ratio, magnitude), once: the fastest is '
        'kept %s.',
        'for this process' if path is None else f'in {path.parent}',
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time work, where files can be locked and nobody keeps the lock."""
    with path.open('a') as file:
        end = time.monotonic() + LOCK_TIMEOUT
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    break
                time.sleep(0.005)
            except OSError:
                break  # some network file systems have no locks
        yield


def _replace(path: Path, text: str) -> None:
    """Write a file such that nobody ever reads a part of it."""
    # Folders may be shared by machines, so a process's number is no unique name.
    part = path.with_name(f'{path.stem}-{uuid.uuid4().hex}.part')
    try:
        part.write_text(text, encoding='utf-8')
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
