"""A wheel, installed in an environment that knows no checkout: its configs and its command."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import mmseg
import pytest
from testing_lines import for_own_script
from testing_wheel import build_wheel

CONFIG = 'sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
SHORT = (
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
    'train_dataloader.batch_size=2',
)


@pytest.fixture(scope='module')
def environment(tmp_path_factory) -> Path:
    """The bin folder of a fresh environment with the wheel, beside the frameworks of this one."""
    folder = tmp_path_factory.mktemp('installed')
    wheel = build_wheel(folder)
    venv.create(folder / 'env', with_pip=False)
    scripts = folder / 'env' / 'bin'
    # Packages of the tests' environment are found there, its editable sapa_mm is not: .pth files
    # in a folder that another .pth file names are not read.
    site = folder / 'env' / Path(sysconfig.get_path('purelib')).relative_to(sys.prefix)
    (site / 'frameworks.pth').write_text(sysconfig.get_path('purelib') + '\n')
    subprocess.run(
        [
            *(sys.executable, '-m', 'pip', '--python', scripts / 'python', 'install', '--quiet'),
            *('--no-deps', '--no-index', '--ignore-installed', wheel),
        ],
        check=True,
        timeout=300,
    )
    return scripts


def run(folder: Path, *command: object) -> str:
    """Run a command in a folder; its output."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope='module')
def project(toy_data, tmp_path_factory) -> Path:
    """A folder with toy data where the tiny configs look for it, and nothing else."""
    folder = tmp_path_factory.mktemp('project')
    (folder / 'data').mkdir()
    (folder / 'data' / 'toy').symlink_to(toy_data)
    return folder


def installed(environment: Path, project: Path) -> Path:
    """The folder of the installed package."""
    code = 'import sapa_mm, pathlib; print(pathlib.Path(sapa_mm.__file__).parent)'
    path = Path(run(project, environment / 'python', '-c', code).splitlines()[-1])
    assert path.is_relative_to(environment.parent)
    return path


def test_the_command_trains_a_config_of_the_package(environment, project):
    own = project / 'own.py'
    own.write_text(f"_base_ = 'sapa_mm::{CONFIG}'\nmodel = dict(decode_head=dict(channels=32))\n")
    for config, name in ((f'sapa_mm::{CONFIG}', 'named'), ('own.py', 'based')):
        command = (environment / 'sapa-mm', 'train', config, '--work-dir', name)
        out = run(project, *command, '--cfg-options', *SHORT)
        assert (project / name / 'iter_2.pth').is_file()
        assert 'mBIoU' in out
    checkpoint = project / 'based' / 'iter_2.pth'
    out = run(project, environment / 'sapa-mm', 'test', 'own.py', checkpoint)
    assert 'mBIoU' in out
    listed = run(project, environment / 'sapa-mm', 'complexity', f'sapa_mm::{CONFIG}')
    assert '| decode_head c2_c1 | SAPA' in listed


def test_the_frameworks_own_script_trains_it_too(environment, project):
    config = installed(environment, project) / '.mim' / 'configs' / CONFIG
    config = for_own_script(config, project)
    script = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
    command = (environment / 'python', script, config, '--work-dir', 'framework')
    run(project, *command, '--cfg-options', *SHORT)
    assert (project / 'framework' / 'iter_2.pth').is_file()


def test_configs_are_read_by_name_after_the_import(environment, project):
    code = (
        'import sapa_mm; from mmengine.hub import get_config; '
        f'print(get_config("sapa_mm::{CONFIG}").model.decode_head.upsample_cfg.similarity)'
    )
    assert run(project, environment / 'python', '-c', code).splitlines()[-1] == 'gated'


def test_tools_know_the_upsamplers_without_a_checkout(environment, project):
    base = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
    command = (environment / 'sapa-mm', 'swap', base, '--upsampler', 'sapa-b', '-o', 'swapped.py')
    assert 'SegformerHead -> GuidedSegformerHead' in run(project, *command)
    door = installed(environment, project) / '.mim' / 'tools' / 'swap_upsampler.py'
    assert 'sapa-b' in run(project, environment / 'python', door, '--help')
