"""Matting with real processes: toy data, training, resuming, two processes, and testing."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from testing_configs import ROOT
from testing_processes import run_command as run

TOOLS = ROOT / 'tools'
CONFIG = ROOT / 'configs' / 'matting' / 'matting-tiny_a2u-paired_1xb8-400_toy-96x96.py'
SHORT = [
    'train_cfg.max_iters=4', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
    'default_hooks.checkpoint.max_keep_ckpts=-1', 'default_hooks.logger.interval=1',
    'train_dataloader.batch_size=2',
]  # fmt: skip
# Processes import the frameworks and train.
pytestmark = pytest.mark.slow
METRICS = {'SAD', 'MSE', 'Grad', 'Conn'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Make a folder with toy data where the tiny configs look for them."""
    folder = tmp_path_factory.mktemp('project')
    make = [TOOLS / 'make_toy_dataset.py', '--out', 'data/toy', '--layouts', 'matting']
    run(folder, sys.executable, *make, '--num-train', 5, '--num-val', 2, '--size', 96)
    return folder


def train(folder: Path, name: str, *options: str, launch: tuple = (sys.executable,)) -> Path:
    work = folder / 'work' / name
    run(folder, *launch, TOOLS / 'train.py', CONFIG, '--work-dir', work, *options,
        '--cfg-options', *SHORT)  # fmt: skip
    return work


@pytest.fixture(scope='module')
def trained(folder) -> Path:
    return train(folder, 'whole')


def records(work: Path) -> list[dict]:
    logs = sorted(work.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def weights(work: Path, iteration: int) -> dict[str, torch.Tensor]:
    # The file is this test's own.
    return torch.load(work / f'iter_{iteration}.pth', weights_only=False)['state_dict']


def test_training_validates(trained):
    found = records(trained)
    validated = [record for record in found if record.keys() >= METRICS]
    assert len(validated) == 2
    losses = [record['loss'] for record in found if 'loss' in record]
    assert len(losses) == 4 and all(0 < loss < 2 for loss in losses)
    assert weights(trained, 4).keys() == weights(trained, 2).keys()


def test_testing_gives_what_validation_gave(folder, trained):
    work = folder / 'work' / 'test'
    run(
        folder,
        sys.executable,
        TOOLS / 'test.py',
        CONFIG,
        trained / 'iter_4.pth',
        '--work-dir',
        work,
    )
    (tested,) = work.glob('*/*.json')
    last = [record for record in records(trained) if record.keys() >= METRICS][-1]
    tested = json.loads(tested.read_text())
    for name in METRICS:
        assert tested[name] == pytest.approx(last[name], rel=1e-4), name


def test_an_interrupted_training_goes_on(folder, trained):
    work = folder / 'work' / 'resumed'
    first = [option.replace('max_iters=4', 'max_iters=2') for option in SHORT]
    run(folder, sys.executable, TOOLS / 'train.py', CONFIG, '--work-dir', work,
        '--cfg-options', *first)  # fmt: skip
    assert not (work / 'iter_4.pth').exists()
    train(folder, 'resumed', '--resume')
    steps = [record['step'] for record in records(work) if 'loss' in record]
    assert steps == [1, 2, 3, 4]
    before, after = weights(work, 2), weights(work, 4)
    moved = [key for key in before if not before[key].equal(after[key])]
    assert any(key.startswith('backbone.') for key in moved)
    assert any(re.match(r'upsamplers\..*projection_down', key) for key in moved)


def test_two_processes(folder):
    launch = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    work = train(folder, 'two', '--launcher', 'pytorch', launch=launch)
    found = [record for record in records(work) if record.keys() >= METRICS]
    # The metric has all four images, however they were shared out; each process has running
    # statistics of its own, and the first one's are saved.
    alone = folder / 'work' / 'two-alone'
    run(folder, sys.executable, TOOLS / 'test.py', CONFIG, work / 'iter_4.pth', '--work-dir', alone)
    (tested,) = alone.glob('*/*.json')
    tested = json.loads(tested.read_text())
    for name in METRICS:
        assert tested[name] == pytest.approx(found[-1][name], rel=0.02), name
