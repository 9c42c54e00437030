"""What is kept of tuning: real files, written by processes that start together."""

import itertools
import json
import logging
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import pytest
import torch
from testing_processes import run_command

from sapa_mm.kernels import affiliation, choices, launch, tuning
from sapa_mm.kernels.choices import Choices

MADE_FOR = dict(device='NVIDIA H200', capability='9.0', torch='2.13.0', triton='3.7', kernels='ab')
CONSTANTS = (('NORMALIZATION', 'softmax'), ('SCALED', False))
PROBLEM = tuning.Problem(
    dtype=torch.float16,
    precision='ieee',
    channels_last=True,
    kernel_size=5,
    slots=(2, 2),
    exact=True,
    channels=256,
    embed=32,
    extent=(16, 16),
    magnitude=8,
)
RUNS = [lambda: None] * 4


class Timer:
    """Times nothing: it returns what it is told, and counts how often it is asked."""

    def __init__(self, *answers: int | None):
        self.answers = list(answers)
        self.calls = 0

    def __call__(self, runs):
        self.calls += 1
        return self.answers[(self.calls - 1) % len(self.answers)]


def make_choices(folder, timer, **changes) -> Choices:
    return Choices(folder, timer, **{**MADE_FOR, **changes})


def choose(chosen, problem=PROBLEM, kernel='affiliation_fwd', constants=CONSTANTS, runs=RUNS):
    return chosen.choose(kernel, constants, problem, runs)


def warnings(caplog):
    return [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]


def run_processes(target, count):
    """Run a function of an index in forked processes and return what they put into a queue."""
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [context.Process(target=target, args=(i, queue)) for i in range(count)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return results


def test_the_next_process_takes_what_was_kept(tmp_path):
    folder, timer = tmp_path / 'not' / 'there yet', Timer(2)
    first = make_choices(folder, timer)
    assert choose(first) == choose(first) == 2
    assert timer.calls == 1
    timer = Timer(1)
    assert choose(make_choices(folder, timer)) == 2
    assert timer.calls == 0
    # Nothing but the file and its lock is left behind.
    assert sorted(path.suffix for path in folder.iterdir()) == ['.json', '.lock']
    assert folder / first.path.name == first.path
    assert first.path.name.startswith('NVIDIA-H200-')


@pytest.mark.parametrize(
    'other',
    [
        dict(kernel='affiliation_bwd'),
        dict(constants=(('NORMALIZATION', 'softmax'), ('SCALED', True))),
        *(
            dict(problem=PROBLEM._replace(**{name: value}))
            for name, value in dict(
                dtype=torch.bfloat16,
                precision='tf32',
                channels_last=False,
                kernel_size=3,
                slots=(2, 3),
                exact=False,
                channels=128,
                embed=64,
                extent=(8, 16),
                magnitude=9,
            ).items()
        ),
    ],
    ids=str,
)
def test_another_problem_is_timed_by_itself(other, tmp_path):
    timer = Timer(2, 1)
    first = make_choices(tmp_path, timer)
    assert [choose(first), choose(first, **other), choose(first)] == [2, 1, 2]
    again = make_choices(tmp_path, Timer(3))
    assert [choose(again), choose(again, **other)] == [2, 1]


@pytest.mark.parametrize('name', MADE_FOR)
def test_another_device_or_version_is_timed_anew(name, tmp_path):
    assert choose(make_choices(tmp_path, Timer(2))) == 2
    timer = Timer(1)
    assert choose(make_choices(tmp_path, timer, **{name: 'other'})) == 1
    assert timer.calls == 1
    # Each keeps its own.
    assert choose(make_choices(tmp_path, Timer(3))) == 2


def test_an_edited_kernel_is_timed_anew(tmp_path):
    (tmp_path / 'window.py').write_text('ROWS = 4\n')
    (tmp_path / 'README.md').write_text('text')
    before = choices.sources_digest(tmp_path)
    (tmp_path / 'README.md').write_text('other text')
    assert choices.sources_digest(tmp_path) == before
    (tmp_path / 'window.py').write_text('ROWS = 8\n')
    assert choices.sources_digest(tmp_path) != before
    copied = tmp_path / 'copied'
    copied.mkdir()
    for path in Path(choices.__file__).parent.glob('*.py'):
        (copied / path.name).write_bytes(path.read_bytes())
    assert choices.sources_digest(copied) == choices.sources_digest()


def content(**changes):
    key = choices._key('affiliation_fwd', CONSTANTS, PROBLEM)
    return json.dumps({'made_for': MADE_FOR, 'choices': {key: 3}, **changes})


@pytest.mark.parametrize(
    'text',
    [
        '',
        content()[:-20],  # half a file
        '\x00\x01',
        '[1, 2]',
        'null',
        content(made_for=dict(MADE_FOR, torch='2.12.0')),
        content(choices=[1]),
        content(choices={'a': 'b'}),
        content(choices={'a': -1}),
        content(choices={'a': True}),
        content(choices={'a': 1.5}),
        '{}',
    ],
)
def test_a_faulty_file_is_ignored_with_one_warning_and_replaced(text, tmp_path, caplog):
    timer = Timer(2)
    chosen = make_choices(tmp_path, timer)
    chosen.path.write_text(text)
    assert choose(chosen) == 2
    assert choose(chosen, PROBLEM._replace(magnitude=5)) == 2
    (message,) = warnings(caplog)
    assert str(chosen.path) in message
    again = make_choices(tmp_path, Timer(0))
    assert [choose(again), choose(again, PROBLEM._replace(magnitude=5))] == [2, 2]


def test_bytes_that_are_no_text_are_ignored(tmp_path, caplog):
    chosen = make_choices(tmp_path, Timer(2))
    chosen.path.write_bytes(b'\xff\xfe\x00{')
    assert choose(chosen) == 2
    assert len(warnings(caplog)) == 1


def test_the_file_of_these_tests_is_read_where_it_is_right(tmp_path, caplog):
    chosen = make_choices(tmp_path, Timer(2))
    chosen.path.write_text(content())
    assert choose(chosen) == 3
    assert not warnings(caplog)


def test_an_entry_that_does_not_exist_is_timed_anew(tmp_path):
    assert choose(make_choices(tmp_path, Timer(3))) == 3
    timer = Timer(1)
    fewer = make_choices(tmp_path, timer)
    assert choose(fewer, runs=RUNS[:2]) == 1
    assert timer.calls == 1
    assert choose(make_choices(tmp_path, Timer(0))) == 1


def test_where_no_folder_can_be_written_choices_last_for_the_process(tmp_path, caplog):
    # A file is in the way, which stops root too.
    (tmp_path / 'file').write_text('')
    timer = Timer(2, 1)
    chosen = make_choices(tmp_path / 'file' / 'cache', timer)
    other = PROBLEM._replace(magnitude=5)
    assert [choose(chosen), choose(chosen, other), choose(chosen)] == [2, 1, 2]
    assert timer.calls == 2
    (message,) = warnings(caplog)
    assert 'SAPA_MM_CACHE' in message


def test_a_folder_that_can_only_be_read_is_read(tmp_path, caplog):
    other = PROBLEM._replace(magnitude=5)
    assert choose(make_choices(tmp_path, Timer(2))) == 2
    tmp_path.chmod(0o555)

    def work(index, queue):
        # The folders above may be closed to everybody else.
        os.chdir(tmp_path)
        if os.getuid() == 0:
            os.setuid(65534)  # root may write everywhere
        chosen = make_choices(Path(), Timer(1))
        queue.put(([choose(chosen), choose(chosen, other)], len(warnings(caplog))))

    assert run_processes(work, 1) == [([2, 1], 1)]
    tmp_path.chmod(0o755)
    assert choose(make_choices(tmp_path, Timer(3)), other) == 3


def test_without_a_home_folder_choices_last_for_the_process(caplog):
    timer = Timer(2)
    chosen = make_choices(None, timer)
    assert choose(chosen) == choose(chosen) == 2
    assert timer.calls == 1
    assert not warnings(caplog)


def test_what_could_not_be_timed_is_not_kept(tmp_path):
    chosen = make_choices(tmp_path, Timer(None, 3))
    assert [choose(chosen), choose(chosen)] == [0, 3]


def test_processes_that_start_together_agree(tmp_path):
    barrier = multiprocessing.get_context('fork').Barrier(8)
    several = [PROBLEM._replace(magnitude=i) for i in range(4)]

    def work(index, queue):
        def timed(runs):
            # Everybody has found no choice before anybody writes one, and each has its own.
            barrier.wait(30)
            return index % 4

        chosen = make_choices(tmp_path, timed)
        queue.put([choose(chosen, problem) for problem in several])

    results = run_processes(work, 8)
    assert len(results) == 8
    assert all(result == results[0] for result in results)
    # It is also what is kept.
    again = make_choices(tmp_path, Timer(0))
    assert [choose(again, problem) for problem in several] == results[0]


@pytest.mark.parametrize('locks', [True, False])
def test_writers_lose_nothing_and_readers_see_no_half_file(locks, tmp_path, monkeypatch, caplog):
    if not locks:
        monkeypatch.setattr(choices, 'fcntl', None)
    names = [[f'kernel{index}_{i}' for i in range(20)] for index in range(4)]

    def work(index, queue):
        chosen = make_choices(tmp_path, lambda runs: index)
        for name in names[index]:
            choose(chosen, kernel=name)
        queue.put(chosen._warned)

    assert run_processes(work, 4) == [False] * 4
    again = make_choices(tmp_path, Timer(0))
    found = again._read()
    assert not warnings(caplog)
    assert all(key.startswith(f'kernel{choice}_') for key, choice in found.items())
    # Without locks those that write at once may lose what the others wrote.
    assert len(found) == 80 if locks else len(found) >= 20
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ['.json', '.lock']


def test_a_lock_that_nobody_gives_back_stops_nothing(tmp_path, monkeypatch):
    fcntl = pytest.importorskip('fcntl')
    monkeypatch.setattr(choices, 'LOCK_TIMEOUT', 0.1)
    chosen = make_choices(tmp_path, Timer(2))
    with chosen.path.with_suffix('.lock').open('a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        start = time.monotonic()
        assert choose(chosen) == 2
        assert 0.1 <= time.monotonic() - start < 5
    assert choose(make_choices(tmp_path, Timer(0))) == 2


def test_so_many_sizes_are_timed_and_no_more(tmp_path):
    timer = Timer(3)
    chosen = make_choices(tmp_path, timer)
    sizes = [PROBLEM._replace(magnitude=2 * i + 20) for i in range(choices.MAX_TUNED)]
    assert [choose(chosen, problem) for problem in sizes] == [3] * choices.MAX_TUNED
    timer.answers = [1]
    assert choose(chosen, PROBLEM._replace(magnitude=33)) == 3
    assert choose(chosen, PROBLEM._replace(magnitude=33, exact=False)) == 3
    # Tiles differ: no choice among theirs is known.
    assert choose(chosen, PROBLEM._replace(extent=(4, 16))) == 0
    assert timer.calls == choices.MAX_TUNED
    # Another layout is bounded by itself.
    assert choose(chosen, PROBLEM._replace(channels_last=False)) == 1
    # The next process begins to count anew.
    assert choose(make_choices(tmp_path, timer), PROBLEM._replace(magnitude=33)) == 1


def test_beyond_the_bound_the_nearest_size_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, 'MAX_TUNED', 3)
    chosen = make_choices(tmp_path, Timer(1, 2, 3))
    for size in (dict(magnitude=4), dict(magnitude=7), dict(magnitude=7, exact=False)):
        choose(chosen, PROBLEM._replace(**size))
    nearest = [choose(chosen, PROBLEM._replace(magnitude=i)) for i in (0, 5, 6, 20)]
    assert nearest == [1, 1, 2, 2]
    assert choose(chosen, PROBLEM._replace(magnitude=9, exact=False)) == 3


@pytest.mark.parametrize('name', ['FORWARD', 'BACKWARD', 'TRANSPOSE'])
@pytest.mark.parametrize('channels_last', [True, False])
def test_the_nearest_sizes_have_the_same_entries(name, channels_last):
    table = getattr(tuning, name)
    problem = PROBLEM._replace(channels_last=channels_last, extent=(8, 16))
    entries = tuning.candidates(table, problem, 2**17, 32)
    near = list(choices.nearest(problem))
    assert near[0] == problem
    assert len(set(near)) == len(near) > 100
    assert all(tuning.candidates(table, other, 2**17, 32) == entries for other in near)


@pytest.mark.parametrize(('divisor', 'expected'), [(32, 4), (1, 8)])
def test_multi_scale_detection_has_few_kinds_of_sizes(divisor, expected, monkeypatch):
    """Batches of 2 of COCO's shapes: short side 480 to 800, long side up to 1333, a pyramid."""
    found = set()
    candidates = tuning.candidates

    def spy(table, problem, *rest):
        found.add(problem)
        return candidates(table, problem, *rest)

    monkeypatch.setattr(tuning, 'candidates', spy)
    draw = random.Random(0)
    channels = 256 + divisor  # of no other test, whose plans are kept
    sizes = set()

    def side(x):
        return -(-int(x) // divisor) * divisor

    for _ in range(400):
        images = []
        for _ in range(2):
            short, ratio = draw.uniform(480, 800), draw.choice([4 / 3, 3 / 2, 1, 16 / 9, 2.5])
            short = min(short, 1333 / ratio)
            images.append((short, short * ratio) if draw.random() < 0.5 else (short * ratio, short))
        sizes.add(tuple(side(max(image[i] for image in images)) for i in range(2)))
    assert len(sizes) > 200
    for size in sizes:
        levels = [tuple(-(-x // stride) for x in size) for stride in (4, 8, 16, 32)]
        for high, low in itertools.pairwise(levels):

            def make(c, size):
                return torch.empty(2, c, *size, dtype=torch.float16, device='meta')

            with launch.record(launch.Device(132, 2**17)):
                affiliation.forward(
                    *(make(32, high), make(32, low), make(channels, low), make(channels, high)),
                    *(5, 'softmax', 1.0, 'zero', 0.0),
                )
    assert expected // 2 < len(found) <= expected < choices.MAX_TUNED


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('SAPA_MM_CACHE', str(tmp_path / 'own'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    monkeypatch.setenv('HOME', str(tmp_path))
    assert choices.cache_folder() == tmp_path / 'own'
    monkeypatch.delenv('SAPA_MM_CACHE')
    assert choices.cache_folder() == tmp_path / 'xdg' / 'sapa_mm'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(sys, 'platform', 'linux')
    assert choices.cache_folder() == tmp_path / '.cache' / 'sapa_mm'
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert choices.cache_folder() == tmp_path / 'Library' / 'Caches' / 'sapa_mm'


def test_the_wait_is_announced_once(tmp_path):
    """Whoever has not set logging up sees it too."""
    script = tmp_path / 'script.py'
    script.write_text(
        'from pathlib import Path\n'
        'import torch\n'
        'from sapa_mm.kernels import choices, tuning\n'
        "chosen = choices.Choices(Path('cache'), lambda runs: 1, device='a')\n"
        'for magnitude in range(3):\n'
        f'    problem = tuning.{PROBLEM}._replace(magnitude=magnitude)\n'
        "    assert chosen.choose('kernel', (), problem, [print, print]) == 1\n"
    )
    output = run_command(tmp_path, sys.executable, script)
    (line,) = output.splitlines()
    assert line.startswith('sapa_mm compiles its kernels')
    assert 'in cache.' in line


def test_what_is_known_is_not_announced(tmp_path, caplog):
    caplog.set_level(logging.INFO, 'sapa_mm')
    for expected in (1, 0):
        choices._announce.cache_clear()
        caplog.clear()
        choose(make_choices(tmp_path, Timer(1)))
        assert len(caplog.records) == expected
