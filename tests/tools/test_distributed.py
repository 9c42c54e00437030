"""Training with several processes, and after a kill, through tools/dist_train.sh and gloo."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, MODELS
from mmseg.utils import register_all_modules
from testing_lines import IS_FORK

from sapa_mm import compat

REPO = Path(__file__).resolve().parents[2]
LR = 0.1
# A published config of mmseg, shrunk: the same classes, layers and data format.
CONFIG = """
_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
data = dict(data_root={data!r})
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    {augmentation}
    dict(type='PackSegInputs'),
]
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        init_cfg=None,
        embed_dims=8,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        drop_path_rate=0.0,
    ),
    decode_head=dict(in_channels=[8, 8, 8, 8], channels=16, dropout_ratio=0.0, {norm}),
)
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle={shuffle}),
    dataset=dict(pipeline=pipeline, **data),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline, **data)
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='BoundaryIoU')]
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
randomness = dict(seed=0)
"""
ONE_STEP = f"""
load_from = {{initial!r}}
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr={LR}, momentum=0.0)
)
param_scheduler = []
train_cfg = dict(max_iters=1, val_interval=1)
"""
WITHOUT_VALIDATION = """
val_dataloader = None
val_cfg = None
val_evaluator = None
"""
MANY_STEPS = """
param_scheduler = [dict(type='PolyLR', eta_min=0.0, begin=0, end=40, by_epoch=False)]
train_cfg = dict(max_iters=40)
default_hooks = dict(checkpoint=dict(interval=2))
"""
RANDOM_AUGMENTATION = "dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion'),"
GROUP_NORM = "norm_cfg=dict(_delete_=True, type='GN', num_groups=2)"


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory) -> Path:
    """Images of 64 by 64 in ADE20K's layout, every pixel labelled."""
    root = tmp_path_factory.mktemp('ade')
    generator = np.random.default_rng(0)
    for split, count in (('training', 8), ('validation', 3)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            label = np.kron(generator.integers(1, 4, (4, 4)), np.ones((16, 16))).astype(np.uint8)
            image = generator.integers(0, 60, (64, 64, 3)) + 60 * label[..., None]
            cv2.imwrite(str(root / 'images' / split / f'{index}.jpg'), image)
            cv2.imwrite(str(root / 'annotations' / split / f'{index}.png'), label)
    return root


@pytest.fixture(scope='module', autouse=True)
def registered():
    """mmseg's modules in this process, and checkpoints readable."""
    register_all_modules(init_default_scope=False)
    compat.allow_mmengine_checkpoints()


def write_config(
    path: Path,
    data: Path,
    extra: str,
    *,
    norm: str = '',
    shuffle: bool = False,
    augmentation: str = '',
) -> Path:
    text = CONFIG.format(data=str(data), norm=norm, shuffle=shuffle, augmentation=augmentation)
    path.write_text(text + extra)
    return path


def environment() -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}


def launch(script: str, *arguments: object) -> str:
    """Run one of the shell scripts and return what it printed."""
    done = subprocess.run(
        [REPO / 'tools' / script, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, map_location='cpu')['state_dict']


def build(config: Path, initial: Path):
    """The config's model and dataset in this process; the weights are written to ``initial``."""
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).train()
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model.init_weights()
    torch.save({'state_dict': model.state_dict()}, initial)
    return model, dataset


def add_gradient(model, samples: list[dict]) -> None:
    """Accumulate the gradient of the mean loss over one batch."""
    losses = model(**model.data_preprocessor(pseudo_collate(samples), True), mode='loss')
    model.parse_losses(losses)[0].backward()


def assert_same_weights(actual: dict, expected: dict, before: dict) -> None:
    """Compare weights after one step: a wrong gradient errs by about the step itself."""
    assert actual.keys() == expected.keys() == before.keys()
    steps = {name: (expected[name] - before[name]).abs().max() for name in expected}
    for name, step in steps.items():
        error = (actual[name] - expected[name]).abs().max()
        # Adding a small step to a large weight loses the step's last digits.
        rounding = 2 * torch.finfo(torch.float32).eps * expected[name].abs().max()
        assert error <= 1e-5 * step + rounding, f'{name}: error {error:.1e}, step {step:.1e}'
    flat = [
        torch.cat([w.double().flatten() for w in d.values()]) for d in (actual, expected, before)
    ]
    actual, expected, before = flat
    assert (actual - expected).norm() <= 1e-6 * expected.norm()
    assert (actual - expected).norm() <= 1e-5 * (expected - before).norm()
    assert all(step > 0 for step in steps.values())


def stepped(model) -> dict[str, torch.Tensor]:
    """The model's weights after one step of plain gradient descent."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= LR * parameter.grad
    return model.state_dict()


def test_two_processes_step_and_evaluate_as_one(ade20k, tmp_path):
    """2 processes with 1 image each take the step of 1 process with both, and score the same."""
    initial = tmp_path / 'initial.pth'
    config = write_config(
        tmp_path / 'step.py', ade20k, ONE_STEP.format(initial=str(initial)), norm=GROUP_NORM
    )
    model, dataset = build(config, initial)
    before = weights(initial)
    trained = launch('dist_train.sh', config, 2, '--work-dir', tmp_path)
    assert 'CPU kernel' not in trained
    checkpoint = tmp_path / 'iter_1.pth'
    add_gradient(model, [dataset[0], dataset[1]])
    assert_same_weights(weights(checkpoint), stepped(model), before)

    # 3 validation images for 2 processes: one is read twice and must not be counted twice.
    tested = launch('dist_test.sh', config, checkpoint, 1, '--work-dir', tmp_path / 'test')
    scores = [re.search(r'mIoU: ([0-9.]+) .*mBIoU: ([0-9.]+)', text) for text in (trained, tested)]
    assert scores[0].groups() == scores[1].groups()
    assert all(0 < float(score) < 100 for score in scores[0].groups())


def test_eight_processes_average_their_gradients(ade20k, tmp_path):
    """8 processes take the step of the mean gradient, and SyncBN is replaced on the way."""
    initial = tmp_path / 'initial.pth'
    extra = ONE_STEP.format(initial=str(initial)) + WITHOUT_VALIDATION
    config = write_config(tmp_path / 'step.py', ade20k, extra)
    plain = write_config(tmp_path / 'plain.py', ade20k, extra, norm="norm_cfg=dict(type='BN')")
    model, dataset = build(plain, initial)
    before = weights(initial)
    printed = launch('dist_train.sh', config, 8, '--work-dir', tmp_path / 'eight')
    line = 'SyncBN has no CPU kernel: BN is used for model.decode_head.norm_cfg.type\n'
    assert printed.count(line) == 1

    # BN sees one image at a time, and the statistics that are saved are those of process 0.
    statistics = {}
    for index in range(8):
        add_gradient(model, [dataset[index]])
        if index == 0:
            statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for parameter in model.parameters():
        parameter.grad /= 8
    after = stepped(model)
    after.update((name, buffer) for name, buffer in statistics.items() if name in after)
    eight = weights(tmp_path / 'eight' / 'iter_1.pth')
    assert_same_weights(eight, after, before)


@pytest.fixture
def train():
    """A function that starts one training in a process group of its own, its output in a file."""
    started = []

    def start(config: Path, work_dir: Path, log: Path, *arguments: str) -> subprocess.Popen:
        with log.open('w') as output:
            command = [REPO / 'tools/train.py', config, '--work-dir', work_dir, *arguments]
            process = subprocess.Popen(
                [sys.executable, *command],
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def last_iteration(work_dir: Path) -> int:
    """The iteration that ``last_checkpoint`` names, 0 before there is one."""
    marker = work_dir / 'last_checkpoint'
    found = re.search(r'iter_(\d+)\.pth$', marker.read_text()) if marker.exists() else None
    return int(found[1]) if found else 0


def test_killed_training_resumes_to_the_same_weights(ade20k, tmp_path, train):
    """Kill a training, resume it, and reach bit for bit the weights of one that ran through.

    Restored from the checkpoint: weights, AdamW's moments, the schedule, the iteration and the log.
    Reproduced from the fixed ``randomness.seed``: the initial weights, the shuffled order of images
    (mmengine reads and drops the batches that were trained on already) and with it, but for the
    fork, the random augmentation. Neither stored nor reproduced: the state of torch's random
    generator, so a model with dropout or drop path goes on with other masks; this one has both
    switched off. Without a fixed seed the order of images is a new one as well.
    """
    config = write_config(
        tmp_path / 'config.py',
        ade20k,
        MANY_STEPS + WITHOUT_VALIDATION,
        norm=GROUP_NORM,
        shuffle=True,
        # The fork's mmengine advances the order of images without loading them.
        augmentation='' if IS_FORK else RANDOM_AUGMENTATION,
    )
    whole = train(config, tmp_path / 'whole', tmp_path / 'whole.log')
    work_dir = tmp_path / 'killed'
    killed = train(config, work_dir, tmp_path / 'killed.log')
    while last_iteration(work_dir) < 10:
        assert killed.poll() is None, (tmp_path / 'killed.log').read_text()[-4000:]
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    iteration = last_iteration(work_dir)
    assert 10 <= iteration < 40

    log = tmp_path / 'resumed.log'
    resumed = train(config, work_dir, log, '--resume')
    assert resumed.wait() == 0, log.read_text()[-4000:]
    assert whole.wait() == 0, (tmp_path / 'whole.log').read_text()[-4000:]
    assert f'Advance dataloader {iteration} steps' in log.read_text()
    expected, actual = (weights(path / 'iter_40.pth') for path in (tmp_path / 'whole', work_dir))
    assert expected.keys() == actual.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    at_kill = weights(work_dir / f'iter_{iteration}.pth')
    assert any(not torch.equal(at_kill[name], expected[name]) for name in expected)
