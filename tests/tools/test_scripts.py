import os
import subprocess
import sys
from pathlib import Path

import pytest

from sapa_mm import frameworks

TOOLS = Path(__file__).parents[2] / 'tools'


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize('script', ['quickstart.sh', 'test.sh', 'try_versions.sh', 'gpu_check.sh'])
def test_help_does_nothing_but_explain(script):
    result = bash(str(TOOLS / script), '--help')
    assert result.returncode == 0
    assert result.stdout.startswith(f'usage: bash tools/{script}')
    assert result.stderr == ''


def test_quickstart_refuses_other_arguments():
    result = bash(str(TOOLS / 'quickstart.sh'), '--with-detection', '--quick')
    assert result.returncode == 2
    sentence = 'expected --depth, --matting, --with-detection or --line LINE, got: --quick'
    assert sentence in result.stderr
    for pair in (('--with-detection', '--depth'), ('--matting', '--depth')):
        result = bash(str(TOOLS / 'quickstart.sh'), *pair)
        assert result.returncode == 2
        assert f'expected {pair[0]} or {pair[1]}, got both' in result.stderr


def test_a_line_stands_before_what_pytest_gets():
    result = bash(str(TOOLS / 'test.sh'), 'tests/ops', '--line', 'onedl')
    assert result.returncode == 2
    assert 'expected --line LINE before all other arguments' in result.stderr


@pytest.mark.parametrize('script', ['quickstart.sh', 'test.sh'])
def test_an_unknown_line_is_refused(script):
    for line in (['downstream'], []):
        result = bash(str(TOOLS / script), '--line', *line)
        assert result.returncode == 2
        assert f'--line: expected upstream or onedl, got: {"".join(line) or "nothing"}' in (
            result.stderr
        )


def test_what_is_installed_stays():
    command = (
        f'set -euo pipefail; . "{TOOLS}/_setup.sh"; PYTHON={sys.executable}; '
        'not_installed numpy==0.1 no-such-thing==1.0 torch'
    )
    assert bash('-c', command).stdout.split() == ['no-such-thing==1.0']


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ([], '--torch VERSION is needed'),
        (['--torch'], '--torch needs a value'),
        (['--torch', '2.13.0', 'exprot'], 'expected steps among import operators'),
    ],
)
def test_try_versions_refuses(arguments, told, tmp_path):
    out = tmp_path / 'out'
    result = bash(str(TOOLS / 'try_versions.sh'), '--out', str(out), *arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert not out.exists()


def test_the_line_of_an_environment_stays():
    (line,) = frameworks.installed_lines()
    other = next(name for name in frameworks.LINES if name != line)
    setup = f'set -euo pipefail; cd "{TOOLS.parent}"; . tools/_setup.sh; set_line {{}}; '
    check = 'choose_python; choose_line; has_mmcv_ops; echo "$MMCV $SEG $DET"'
    kept = bash('-c', setup.format(line) + check, VIRTUAL_ENV=sys.prefix)
    assert kept.returncode == 0, kept.stderr
    assert kept.stdout.count('onedl-') == (4 if line == 'onedl' else 0)
    refused = bash('-c', setup.format(other) + check, VIRTUAL_ENV=sys.prefix)
    assert refused.returncode == 1
    assert f'holds the line {line}, not {other}: take another environment' in refused.stderr


def test_an_active_environment_is_used_as_it_is(tmp_path):
    # Answers every question of _setup.sh with yes and records what pip would be told.
    fake = tmp_path / 'bin' / 'python'
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\n[ "$1" = -m ] && echo "$@" >>"$RECORD"\nexit 0\n')
    fake.chmod(0o755)
    record = tmp_path / 'record'
    command = f'set -euo pipefail; cd "{tmp_path}"; . "{TOOLS}/_setup.sh"; install_everything dev'
    result = bash(
        '-c',
        command,
        VIRTUAL_ENV=str(tmp_path),
        PATH=f'{fake.parent}:{os.environ["PATH"]}',
        RECORD=str(record),
    )
    assert result.returncode == 0, result.stderr
    told = record.read_text()
    assert 'torch==' not in told  # there is one
    assert 'mmcv==' not in told
    assert '-e .[dev]' in told
    assert not (tmp_path / '.venv').exists()


def test_gpu_check_says_what_is_missing(tmp_path):
    # As in an environment that is not active but that the tests run in.
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    script = str(TOOLS / 'gpu_check.sh')
    result = bash(script, str(tmp_path), CUDA_VISIBLE_DEVICES='', PATH=path)
    assert result.returncode == 1
    assert 'sees no GPU' in result.stderr


def test_gpu_check_refuses_unknown_steps(tmp_path):
    result = bash(str(TOOLS / 'gpu_check.sh'), str(tmp_path / 'out'), 'tests', 'memchek')
    assert result.returncode == 2
    assert 'got: memchek' in result.stderr
    assert not (tmp_path / 'out').exists()


FAKE_PYTHON = """#!/bin/sh
case "$*" in
"-W ignore -") printf '%s\\n' torch triton pytest numpy xdist mmseg gpu ;;
-) echo a device ;;
-c*) ;;
*)
    echo "$*" >>"$RECORD"
    echo "the output of $*"
    case "$*" in *"$FAILING"*) exit 3 ;; esac
    ;;
esac
"""
# Notes the limit, and ends as it does when that is reached.
FAKE_TIMEOUT = """#!/bin/sh
[ "$1 $2 $3 $4" = "-s INT -k 5" ] || exit 9
shift 4
printf '%s ' "$1" >>"$RECORD"
shift
"$@" || exit
case "$*" in *"$SLOW"*) exit 124 ;; esac
"""


def gpu_check(folder: Path, *arguments: str, failing: str = 'nothing', slow: str = 'nothing'):
    """Run it where python, timeout and compute-sanitizer only note how they are called."""
    fakes = folder / 'bin'
    fakes.mkdir(exist_ok=True)
    sanitizer = '#!/bin/sh\nprintf "%s " "$2" >>"$RECORD"\nshift 6\nexec "$@"\n'
    texts = {'python3': FAKE_PYTHON, 'timeout': FAKE_TIMEOUT, 'compute-sanitizer': sanitizer}
    for name, text in texts.items():
        (fakes / name).write_text(text)
        (fakes / name).chmod(0o755)
    (folder / 'record').write_text('')
    result = bash(
        str(TOOLS / 'gpu_check.sh'),
        *arguments,
        VIRTUAL_ENV=str(folder),
        PATH=f'{fakes}:{os.environ["PATH"]}',
        RECORD=str(folder / 'record'),
        FAILING=failing,
        SLOW=slow,
        TRITON_INTERPRET='',
    )
    return result, (folder / 'record').read_text().splitlines()


def test_gpu_check_stays_below_eight_minutes(tmp_path):
    out = tmp_path / 'out'
    result, calls = gpu_check(tmp_path, str(out))
    assert result.returncode == 0, result.stderr
    limits = [int(call.split()[0]) for call in calls]
    # Every step has five seconds to end, and 25 are for what comes before the first.
    assert sum(limits) + 5 * len(calls) + 25 <= 480
    assert [call.split()[1:3] for call in calls] == [
        ['-m', 'pytest'],
        ['tools/benchmark.py', '--host'],
        ['tools/benchmark.py', '--shapes'],
        ['tools/benchmark.py', '--train-step'],
        ['memcheck', '-m'],
    ]
    cores = len(os.sched_getaffinity(0))
    assert f'-m gpu -n {min(cores, 16)} tests/ops' in calls[0]
    trained = [word for word in calls[3].split() if word.startswith('configs/')]
    assert len(trained) == 7
    assert all((TOOLS.parent / config).is_file() for config in trained)
    assert [path.name for path in sorted(out.iterdir())] == [
        'benchmark.log',
        'memcheck.log',
        'models.log',
        'tests.log',
    ]
    # Both commands of a step, and of this run alone.
    gpu_check(tmp_path, str(out))
    assert (out / 'benchmark.log').read_text().count('the output of') == 2


def test_gpu_check_goes_on_after_what_fails(tmp_path):
    out = tmp_path / 'out'
    result, calls = gpu_check(tmp_path, str(out), failing='-m pytest', slow='--shapes')
    assert result.returncode == 1
    assert len(calls) == 5
    assert 'failed: tests; benchmark, stopped after 100 s; memcheck; ' in result.stderr
    assert 'the output of -m pytest' in (out / 'tests.log').read_text()
    assert '--shapes gpu' in (out / 'benchmark.log').read_text()
    result, calls = gpu_check(tmp_path, str(out), 'synccheck', 'models')
    assert result.returncode == 0
    assert len(calls) == 2
    assert '--train-step' in calls[0]
    assert calls[1].split()[:2] == ['120', 'synccheck']


def test_gpu_check_compares_with_an_earlier_run(tmp_path):
    before, out = tmp_path / 'be fore', tmp_path / 'out'
    before.mkdir()
    (before / 'benchmark.json').touch()
    result, calls = gpu_check(tmp_path, '--against', str(before), str(out), 'benchmark')
    assert result.returncode == 0
    assert f'there is no {before}/host.json to compare with' in result.stdout
    assert '--against' not in calls[0]
    assert f'--json {out}/benchmark.json --against {before}/benchmark.json' in calls[1]
    result, calls = gpu_check(tmp_path, '--against', str(tmp_path / 'nowhere'))
    assert result.returncode == 2
    assert f'--against: expected a FOLDER of an earlier run, got: {tmp_path}/nowhere' in (
        result.stderr
    )
    assert calls == []
