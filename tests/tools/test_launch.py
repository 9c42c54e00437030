"""train.py, test.py and the shell scripts: what they find, what they add, what they refuse."""

import argparse
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config, DictAction
from mmengine.runner import save_checkpoint

from sapa_mm.frameworks import INSTALL
from sapa_mm.tools import configs, launch
from sapa_mm.tools.complexity.count import build
from sapa_mm.tools.errors import ToolError

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / 'tools'
SEGFORMER = 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
FASTER_RCNN = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def run(*command: object, cwd: Path | None = None, **environment: str):
    """Run a command; its streams come back as text."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **environment},
        capture_output=True,
        text=True,
    )


# Configs and scripts


@pytest.mark.parametrize(('package', 'inner'), [('mmseg', SEGFORMER), ('mmdet', FASTER_RCNN)])
def test_stock_configs_are_found_by_name_and_by_path(package, inner):
    path = configs.find_config(f'{package}::{inner}')
    assert path.is_file()
    assert path.as_posix().endswith(f'{package}/.mim/configs/{inner}')
    assert configs.find_config(f'{package}::{inner.removesuffix(".py")}') == path
    assert configs.find_config(str(path)) == path
    assert Config.fromfile(path).default_scope == package


@pytest.mark.parametrize('tool', ['train', 'test'])
@pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
def test_packaged_scripts_are_found(package, tool):
    script = launch.find_script(package, tool)
    assert script.as_posix().endswith(f'{package}/.mim/tools/{tool}.py')
    assert 'def main' in script.read_text()


def test_a_development_install_is_found_beside_the_package(tmp_path):
    for file in ('mmdet/__init__.py', 'tools/train.py', 'configs/faster_rcnn/mine.py'):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).touch()
    code = (
        'from sapa_mm.tools import configs, launch\n'
        'print(launch.find_script("mmdet", "train"))\n'
        'print(configs.find_config("mmdet::faster_rcnn/mine"))\n'
        'launch.find_script("mmdet", "test")'
    )
    done = run(sys.executable, '-c', code, PYTHONPATH=str(tmp_path))
    assert done.stdout.splitlines() == [
        str(tmp_path / 'tools/train.py'),
        str(tmp_path / 'configs/faster_rcnn/mine.py'),
    ]
    assert 'without its tools/test.py: pip install' in done.stderr


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('no/such/config.py', "no file 'no/such/config.py'"),
        (
            'mmpose::a/b.py',
            'expected one of mmseg, mmdet, sapa_mm before "::", got \'mmpose::a/b.py\'',
        ),
        (
            'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k.py',
            f'close to it: .*{re.escape(SEGFORMER)}',
        ),
    ],
)
def test_unknown_configs_are_refused(name, message):
    with pytest.raises(ToolError, match=message):
        configs.find_config(name)


def test_a_missing_framework_is_named_with_its_command():
    code = (
        'import sys; sys.modules["mmdet"] = None; from sapa_mm.tools import cli; '
        'sys.exit(cli.run("train"))'
    )
    done = run(sys.executable, '-c', code, f'mmdet::{FASTER_RCNN}')
    assert done.returncode == 2
    assert f'mmdet, which is not installed: pip install {INSTALL["mmdet"]}' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('scope', [None, 'mmpose'])
def test_a_config_of_another_framework_is_refused(scope, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f'default_scope = {scope!r}\n')
    with pytest.raises(ToolError, match=f"'mmseg' or 'mmdet' in .*, got {scope!r}"):
        launch.prepare('train', [str(config)])
    # An option may say what the file does not.
    options = ['--cfg-options', 'default_scope=mmdet', '--work-dir', 'x']
    script, arguments, group = launch.prepare('test', [str(config), 'a.pth', *options])
    assert script == launch.find_script('mmdet', 'test')
    assert arguments == [str(config), 'a.pth', *options]
    assert group is None


# Arguments


def test_config_comes_first():
    assert launch.split_arguments(['c.py', '--amp', 'x']) == ('c.py', ['--amp', 'x'])
    legacy = ['--local-rank=1', 'c.py', '--amp']
    assert launch.split_arguments(legacy) == ('c.py', ['--local-rank=1', '--amp'])
    with pytest.raises(ToolError, match='first argument, got --resume'):
        launch.split_arguments(['--resume', 'c.py'])
    with pytest.raises(ToolError, match='first argument, got nothing'):
        launch.split_arguments([])


def test_options_are_read_as_the_frameworks_read_them():
    arguments = ['a.pth', '--resume', '--cfg-options', 'a.b=None', 'c=[1,2]', '--launcher=pytorch']
    options = launch.read_options([*arguments, '--work-dir', 'w', '--cfg-options=c=true', '--amp'])
    assert options.launcher == 'pytorch'
    assert options.cfg_options == {'a.b': None, 'c': True}
    assert launch.read_options(['--amp']).cfg_options == {}
    with pytest.raises(ToolError, match='expected KEY=VALUE pairs'):
        launch.read_options(['--cfg-options', 'nothing'])


# What a CPU needs


def cpu_config(config: dict, *user: str) -> dict:
    """The config as the framework sees it, after the user's options and those that are added."""
    given = launch.read_options(['--cfg-options', *user]).cfg_options if user else {}
    merged = Config(config)
    merged.merge_from_dict(given)
    added = [f'{key}={value}' for key, value in launch.cpu_options(merged.to_dict(), given).items()]
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    arguments = ['--cfg-options', *user] if user else []
    parsed = parser.parse_args([*arguments, '--cfg-options', *added])
    result = Config(config)
    result.merge_from_dict(parsed.cfg_options)
    return result.to_dict()


WRAPPER = {
    'type': 'MMDistributedDataParallel',
    'broadcast_buffers': False,
    'find_unused_parameters': False,
    'device_ids': None,
}


def test_cpu_gets_gloo_and_a_wrapper_without_devices():
    config = cpu_config({'model': {'type': 'A'}})
    assert config == {
        'model': {'type': 'A'},
        'env_cfg': {'dist_cfg': {'backend': 'gloo'}},
        'model_wrapper_cfg': WRAPPER,
    }


def test_cpu_keeps_the_rest_of_the_config():
    config = cpu_config(
        {
            'env_cfg': {'cudnn_benchmark': True, 'dist_cfg': {'backend': 'nccl', 'timeout': 60}},
            'find_unused_parameters': True,
        }
    )
    assert config['env_cfg']['dist_cfg'] == {'backend': 'gloo', 'timeout': 60}
    assert config['env_cfg']['cudnn_benchmark'] is True
    assert config['model_wrapper_cfg'] == {**WRAPPER, 'find_unused_parameters': True}
    # A wrapper that the config has keeps its own settings.
    wrapper = {'type': 'MMDistributedDataParallel', 'static_graph': True}
    config = cpu_config({'model_wrapper_cfg': wrapper})
    assert config['model_wrapper_cfg'] == {**wrapper, 'device_ids': None}
    other = {'type': 'MMSeparateDistributedDataParallel'}
    assert cpu_config({'model_wrapper_cfg': other})['model_wrapper_cfg'] == other


def test_cpu_replaces_what_a_config_sets_to_none():
    config = cpu_config({'env_cfg': {'dist_cfg': None}, 'model_wrapper_cfg': None})
    assert config['env_cfg']['dist_cfg'] == {'backend': 'gloo'}
    assert config['model_wrapper_cfg'] == WRAPPER


def test_sync_bn_becomes_bn_wherever_the_model_has_it():
    sync = {'type': 'SyncBN', 'eps': 1e-3}
    config = cpu_config(
        {
            'norm_cfg': sync,
            'sync_bn': 'torch',
            'model': {
                'backbone': {'norm_cfg': sync, 'stem': {'norm_cfg': {'type': 'GN'}}},
                'decode_head': [{'norm_cfg': sync}, {'norm_cfg': {'type': 'mmcv.MMSyncBN'}}],
            },
        }
    )
    bn = {'type': 'BN', 'eps': 1e-3}
    assert config['model'] == {
        'backbone': {'norm_cfg': bn, 'stem': {'norm_cfg': {'type': 'GN'}}},
        'decode_head': [{'norm_cfg': bn}, {'norm_cfg': {'type': 'BN'}}],
    }
    assert config['sync_bn'] is None


def test_what_the_user_sets_stays():
    config = cpu_config(
        {'model': {'norm_cfg': {'type': 'SyncBN'}}, 'env_cfg': {'dist_cfg': {'backend': 'nccl'}}},
        'env_cfg.dist_cfg.backend=mpi',
        'model.norm_cfg.type=LN',
        'find_unused_parameters=True',
        'model_wrapper_cfg.broadcast_buffers=True',
    )
    assert config['env_cfg']['dist_cfg'] == {'backend': 'mpi'}
    assert config['model'] == {'norm_cfg': {'type': 'LN'}}
    assert config['model_wrapper_cfg'] == {'broadcast_buffers': True, 'device_ids': None}


def test_an_option_that_shuts_out_what_a_cpu_needs_is_refused():
    with pytest.raises(ToolError, match='model_wrapper_cfg=None leaves no room for'):
        cpu_config({'model': {}}, 'model_wrapper_cfg=None')


def test_cpu_processes_come_from_torchrun(monkeypatch):
    with pytest.raises(ToolError, match=r'expected pytorch .* got slurm'):
        launch.check_cpu_launch('slurm')
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR'):
        monkeypatch.setenv(name, '0')
    monkeypatch.delenv('MASTER_PORT', raising=False)
    with pytest.raises(ToolError, match=r'MASTER_PORT not in the env.*dist_train'):
        launch.check_cpu_launch('pytorch')
    monkeypatch.setenv('MASTER_PORT', '1')
    launch.check_cpu_launch('pytorch')


@pytest.mark.parametrize(
    ('optim_wrapper', 'arguments', 'message'),
    [
        ("dict(type='OptimWrapper')", ['--amp'], r'--amp: .* on cpu here; .* leave it out\n'),
        ("dict(type='AmpOptimWrapper')", [], r'optim_wrapper.type=AmpOptimWrapper: .* make it Opt'),
        ("dict(type='mmengine.optim.AmpOptimWrapper')", [], r'AmpOptimWrapper: .* make it Optim'),
    ],
)
def test_mixed_precision_without_a_gpu_is_refused(optim_wrapper, arguments, message, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f"default_scope = 'mmseg'\noptim_wrapper = {optim_wrapper}\n")
    done = run(*(sys.executable, TOOLS / 'train.py', config, *arguments), CUDA_VISIBLE_DEVICES='')
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert 'Traceback' not in done.stderr
    # A test optimizes nothing.
    script, _, _ = launch.prepare('test', [str(config), 'a.pth'])
    assert script == launch.find_script('mmseg', 'test')


def test_single_precision_trains_anywhere():
    for cfg in ({}, {'optim_wrapper': None}, {'optim_wrapper': {'type': 'OptimWrapper'}}):
        launch.check_amp(cfg, amp=False)


# Help


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_help_explains_itself_without_a_framework(tool):
    blocked = ('mmengine', 'mmcv', 'mmseg', 'mmdet')
    code = (
        f'import runpy, sys; sys.modules.update(dict.fromkeys({blocked})); sys.argv.pop(0); '
        'runpy.run_path(sys.argv[0], run_name="__main__")'
    )
    done = run(sys.executable, '-c', code, TOOLS / f'{tool}.py', '--help')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'usage: tools/{tool}.py CONFIG')
    for part in ('CONFIG --help', '::', '--cfg-options', f'tools/dist_{tool}.sh', 'gloo'):
        assert part in done.stdout


def test_help_of_a_config_is_that_of_its_framework():
    done = run(sys.executable, TOOLS / 'train.py', f'mmdet::{FASTER_RCNN}', '--help')
    assert done.returncode == 0, done.stderr[-2000:]
    # An argument that of the two scripts only mmdet's has.
    assert '--auto-scale-lr' in done.stdout
    assert 'Train a detector' in done.stdout


@pytest.mark.parametrize(
    ('script', 'arguments', 'missing'),
    [
        ('dist_train.sh', [], 'CONFIG and GPUS are missing'),
        ('dist_train.sh', ['c.py'], 'GPUS, the number of processes, is missing'),
        ('dist_train.sh', ['c.py', '--amp'], "GPUS: expected a positive number, got '--amp'"),
        ('dist_test.sh', ['c.py', 'a.pth'], 'GPUS, the number of processes, is missing'),
        ('dist_test.sh', ['c.py', '2', 'a.pth'], "GPUS: expected a positive number, got 'a.pth'"),
        ('slurm_train.sh', ['gpu', 'job'], 'CONFIG WORK_DIR missing'),
    ],
)
def test_shell_scripts_say_what_is_missing(script, arguments, missing):
    done = run(TOOLS / script, *arguments)
    assert done.returncode == 2
    assert missing in done.stderr
    assert f'See tools/{script} --help.' in done.stderr


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
@pytest.mark.parametrize('flag', ['-h', '--help'])
def test_shell_scripts_have_help(script, flag):
    done = run(TOOLS / script, flag)
    assert done.returncode == 0
    assert done.stdout.startswith(f'Usage: tools/{script} ')
    assert 'PORT' in done.stdout


def recorder(folder: Path, name: str) -> Path:
    """An executable that prints the port and its arguments, one a line."""
    program = folder / name
    program.write_text('#!/bin/sh\necho "port=$MASTER_PORT"\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return program


def test_several_machines_meet_at_the_first_ones_port(tmp_path):
    python = str(recorder(tmp_path, 'python'))
    command = [TOOLS / 'dist_train.sh', 'c.py', '4', '--cfg-options', 'a=[1, 2]']
    done = run(
        *command, PYTHON=python, NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='99'
    )
    assert done.stdout.splitlines()[1:] == [
        '-m',
        'torch.distributed.run',
        '--nnodes=2',
        '--node-rank=1',
        '--master-addr=10.0.0.1',
        '--master-port=99',
        '--nproc-per-node=4',
        str(TOOLS / 'train.py'),
        'c.py',
        '--launcher',
        'pytorch',
        '--cfg-options',
        'a=[1, 2]',
    ]
    done = run(*command, PYTHON=python, NNODES='2')
    assert done.returncode == 2
    assert 'MASTER_ADDR: required' in done.stderr
    # On one machine torchrun looks for a free port itself.
    assert '--standalone' in run(*command, PYTHON=python).stdout.splitlines()


def test_slurm_starts_one_task_a_gpu(tmp_path):
    recorder(tmp_path, 'srun')
    done = run(
        *(
            TOOLS / 'slurm_train.sh',
            'gpu',
            'my job',
            'c.py',
            'out dir',
            '--cfg-options',
            'a=[1, 2]',
        ),
        PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}',
        PYTHON='python3',
        GPUS='16',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--time=1:00 --exclusive',
        PORT='12345',
    )
    assert done.stdout.splitlines() == [
        'port=12345',
        '--partition=gpu',
        '--job-name=my job',
        '--gres=gpu:8',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--cpus-per-task=3',
        '--kill-on-bad-exit=1',
        '--time=1:00',
        '--exclusive',
        'python3',
        '-u',
        str(TOOLS / 'train.py'),
        'c.py',
        '--work-dir=out dir',
        '--launcher=slurm',
        '--cfg-options',
        'a=[1, 2]',
    ]


# The whole way


def toy_options(tmp_path: Path) -> dict[str, object]:
    """Write two images for each split; the options by which SEGFORMER, tiny, takes them."""
    generator = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(2):
            image = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            label = generator.integers(0, 151, (64, 64), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / 'images' / split / f'{index}.jpg'), image)
            cv2.imwrite(str(tmp_path / 'annotations' / split / f'{index}.png'), label)
    loaders = {
        f'{name}_dataloader.{key}': value
        for name in ('train', 'test')
        for key, value in {
            'num_workers': 0,
            'persistent_workers': False,
            'dataset.data_root': tmp_path,
        }.items()
    }
    return {
        **loaders,
        'model.data_preprocessor.size': '(64,64)',
        'model.backbone.init_cfg': None,
        'model.backbone.embed_dims': 8,
        'model.backbone.num_heads': '[1,1,1,1]',
        'model.decode_head.in_channels': '[8,8,8,8]',
        'model.decode_head.channels': 16,
        'train_dataloader.dataset.pipeline.2.scale': '(128,64)',
        'train_dataloader.dataset.pipeline.3.crop_size': '(64,64)',
        'train_cfg.max_iters': 2,
        'default_hooks.checkpoint.interval': 2,
        'val_dataloader': None,
        'val_cfg': None,
        'val_evaluator': None,
        'test_evaluator._delete_': True,
        'test_evaluator.type': 'BoundaryIoU',
    }


def test_a_stock_config_trains_and_tests_by_options_alone(tmp_path):
    options = [f'{key}={value}' for key, value in toy_options(tmp_path).items()]
    config = f'mmseg::{SEGFORMER}'
    done = run(
        *(sys.executable, TOOLS / 'train.py', config, '--cfg-options', *options), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # mmseg's script names the folder after the config.
    checkpoint = tmp_path / 'work_dirs' / Path(SEGFORMER).stem / 'iter_2.pth'
    done = run(
        *(sys.executable, TOOLS / 'test.py', config, checkpoint, '--work-dir', 'tested'),
        *('--cfg-options', *options),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f'Load checkpoint from {checkpoint}' in done.stdout
    assert re.search(r'Iter\(test\) \[2/2\].* mBIoU: \d', done.stdout)
    assert list((tmp_path / 'tested').glob('*/*.json'))


@pytest.mark.slow  # two runs, each of which imports mmseg and mmdet
def test_what_is_tested_has_its_upsamplers_weights_and_what_is_trained_may_lack_them(tmp_path):
    options = toy_options(tmp_path)
    config, stock = f'mmseg::{SEGFORMER}', tmp_path / 'stock.pth'
    cfg = Config.fromfile(configs.find_config(config))
    model = {k: ast.literal_eval(str(v)) for k, v in options.items() if k.startswith('model.')}
    cfg.merge_from_dict(model)
    save_checkpoint(dict(state_dict=build(cfg).state_dict()), str(stock))
    options['model.decode_head.type'] = 'GuidedSegformerHead'
    options['model.decode_head.upsample_cfg.type'] = 'SAPA'
    given = ['--work-dir', 'out', '--cfg-options', *(f'{k}={v}' for k, v in options.items())]
    done = run(sys.executable, TOOLS / 'test.py', config, stock, *given, cwd=tmp_path)
    assert done.returncode == 2
    sentence = done.stderr.splitlines()[-2]
    assert f'test.py: error: {stock} has no weights for upsamplers of ' in sentence
    assert 'decode_head.upsamplers.c4_c3.query_proj.weight' in sentence
    assert f'--cfg-options load_from={stock}' in sentence
    assert 'Traceback' not in done.stderr and 'BIoU' not in done.stdout
    given.append(f'load_from={stock}')
    done = run(sys.executable, TOOLS / 'train.py', config, *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f'Load checkpoint from {stock}' in done.stdout
