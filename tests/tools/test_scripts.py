import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize('script', ['quickstart.sh', 'test.sh', 'gpu_check.sh'])
def test_help_does_nothing_but_explain(script):
    result = bash(str(TOOLS / script), '--help')
    assert result.returncode == 0
    assert result.stdout.startswith(f'usage: bash tools/{script}')
    assert result.stderr == ''


def test_quickstart_takes_no_arguments():
    result = bash(str(TOOLS / 'quickstart.sh'), '--quick')
    assert result.returncode == 2
    assert 'quickstart.sh takes no arguments, got: --quick' in result.stderr


def test_an_active_environment_is_used_as_it_is(tmp_path):
    # Answers every question of _setup.sh with yes and records what pip would be told.
    fake = tmp_path / 'bin' / 'python'
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\n[ "$1" = -m ] && echo "$@" >>"$RECORD"\nexit 0\n')
    fake.chmod(0o755)
    record = tmp_path / 'record'
    command = f'set -euo pipefail; cd "{tmp_path}"; . "{TOOLS}/_setup.sh"; install_everything seg'
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
    assert '-e .[seg]' in told
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
