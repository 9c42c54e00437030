"""mmengine's checkpoints load under weights_only, and malicious ones do not."""

import builtins
import functools
import http.server
import importlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint

from sapa_mm import compat

# Two new processes use it: stock mmengine trains and saves, and one with sapa_mm resumes.
TINY_TRAINING = """
import logging

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fit = torch.nn.Linear(1, 1)

    def forward(self, x, y, mode='tensor'):
        x, y = torch.stack(list(x)), torch.stack(list(y))
        error = (self.fit(x) - y).square().mean()
        return {'loss': error} if mode == 'loss' else [{'error': error}]


class Score(BaseMetric):
    default_prefix = 'line'

    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0]['error']))

    def compute_metrics(self, results):
        # float32, as mmseg reports mIoU: CheckpointHook stores it as the best score.
        return {'score': np.float32(-sum(results))}


def build(work_dir, max_epochs, **kwargs):
    data = [{'x': torch.tensor([float(i)]), 'y': torch.tensor([2.0 * i])} for i in range(4)]
    loader = dict(
        dataset=data,
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    return Runner(
        Line(),
        str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=dict(type=Score),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=dict(type='PolyLR', eta_min=0.001, begin=0, end=4, by_epoch=True),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', save_best='line/score', rule='greater'),
            logger=dict(type='LoggerHook', interval=1),
        ),
        log_level=logging.ERROR,
        experiment_name='compat',
        **kwargs,
    )
"""

TRAIN = """
import json, sys
import tiny_training

work_dir, whole, report = sys.argv[1:]
runner = tiny_training.build(work_dir, max_epochs=2)
runner.train()
hub = runner.message_hub
trained = dict(
    losses=hub.get_scalar('train/loss').data[0].tolist(), best=float(hub.get_info('best_score'))
)
runner = tiny_training.build(whole, max_epochs=3)
runner.train()
trained.update(
    lr=runner.optim_wrapper.get_lr()['lr'][0],
    weight=runner.model.fit.weight.item(),
)
json.dump(trained, open(report, 'w'))
"""

RESUME = """
import json, pickle, sys
import torch

work_dir, report = sys.argv[1:]
checkpoint = f'{work_dir}/epoch_2.pth'
try:
    torch.load(checkpoint)
    refused = False
except pickle.UnpicklingError:
    refused = True

import sapa_mm
import tiny_training
from mmengine.runner import CheckpointLoader, load_checkpoint

loaded = load_checkpoint(tiny_training.Line(), checkpoint, strict=True)
runner = tiny_training.build(work_dir, max_epochs=3, resume=True)
runner.load_or_resume()
hub = runner.message_hub
loss = hub.get_scalar('train/loss')
resumed = dict(
    refused=refused,
    epoch=loaded['meta']['epoch'],
    losses=loss.data[0].tolist(),
    mean=loss.statistics('mean', window_size=2),
    best=float(hub.get_info('best_score')),
)
runner.train()
resumed.update(
    iter=runner.iter,
    lr=runner.optim_wrapper.get_lr()['lr'][0],
    weight=runner.model.fit.weight.item(),
)
json.dump(resumed, open(report, 'w'))
"""


def report_of(folder: Path, script: str, *arguments: Path) -> dict:
    """Run a script in a new process and return what it reports."""
    report = folder / 'report.json'
    paths = [str(folder), os.environ.get('PYTHONPATH', '')]
    done = subprocess.run(
        [sys.executable, '-c', script, *map(str, arguments), str(report)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text())


def test_new_process_resumes_a_runner_checkpoint(tmp_path):
    (tmp_path / 'tiny_training.py').write_text(TINY_TRAINING)
    work_dir = tmp_path / 'run'
    trained = report_of(tmp_path, TRAIN, work_dir, tmp_path / 'whole')
    resumed = report_of(tmp_path, RESUME, work_dir)

    # Stock mmengine cannot read it, and the process did after importing sapa_mm alone.
    assert resumed['refused'] == (torch.__version__ >= (2, 6))
    assert resumed['epoch'] == 2
    assert len(trained['losses']) == 4
    assert resumed['losses'] == trained['losses']
    assert resumed['mean'] == pytest.approx(sum(trained['losses'][-2:]) / 2)
    assert resumed['best'] == trained['best']
    # Momentum and the schedule decide these: a start from the weights alone misses them.
    assert resumed['iter'] == 6
    assert resumed['lr'] == trained['lr']
    assert resumed['weight'] == trained['weight']


def test_arrays_pickled_by_numpy_1_load(tmp_path):
    values = {'array': np.arange(3, dtype=np.uint8), 'score': np.float32(41.5)}
    path = tmp_path / 'old.pth'
    torch.save(values, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for module in (b'numpy._core.multiarray', b'numpy.core.multiarray'):
        renamed, count = re.subn(rb'cnumpy\._?core\.multiarray\n', b'c' + module + b'\n', content)
        assert count == 2
        path.write_bytes(renamed)
        loaded = torch.load(path, weights_only=True)
        assert loaded['array'].tolist() == [0, 1, 2]
        assert loaded['array'].dtype == np.uint8
        assert loaded['score'] == np.float32(41.5)


# What torch says whenever its restricted unpickler refuses.
REFUSED = r'(?i)weights_?only'


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def load(path: Path) -> None:
    load_checkpoint(torch.nn.Linear(1, 1), str(path))


@pytest.mark.parametrize('function', ['os.system', 'builtins.eval'])
def test_code_in_a_checkpoint_is_refused_before_it_runs(function, tmp_path):
    canary, path = tmp_path / 'canary', tmp_path / 'evil.pth'
    attack = {
        'os.system': Call(os.system, f'touch {canary}'),
        'builtins.eval': Call(builtins.eval, f'open({str(canary)!r}, "w").close()'),
    }[function]
    torch.save({'state_dict': {}, 'message_hub': attack}, path)
    compat.allow_mmengine_checkpoints()
    with pytest.raises(pickle.UnpicklingError, match=REFUSED):
        load(path)
    assert not canary.exists()
    # The attack is a real one: without weights_only it succeeds.
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_code_in_a_downloaded_checkpoint_is_refused_before_it_runs(tmp_path, monkeypatch):
    canary = tmp_path / 'canary'
    torch.save(
        {'state_dict': {}, 'meta': Call(os.system, f'touch {canary}')}, tmp_path / 'evil.pth'
    )
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/evil.pth'
        with pytest.raises(pickle.UnpicklingError, match=REFUSED):
            load(url)
        server.shutdown()
    assert not canary.exists()
    # mmengine by itself reads what it downloaded without weights_only.
    torch.hub.load_state_dict_from_url(url, model_dir=tmp_path / 'cache' / 'hub' / 'checkpoints')
    assert canary.exists()


def test_config_text_in_a_checkpoint_does_not_run_when_it_is_resumed(tmp_path, monkeypatch):
    # mmengine reads it as a Python config, which old checkpoints have there.
    canary = tmp_path / 'canary'
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'tiny_training.py').write_text(TINY_TRAINING)
    import tiny_training

    tiny_training.build(tmp_path / 'run', max_epochs=1).train()
    path = tmp_path / 'run' / 'epoch_1.pth'
    checkpoint = torch.load(path)
    checkpoint['meta']['config'] = f'open({str(canary)!r}, "w").close()'
    torch.save(checkpoint, path)
    runner = tiny_training.build(tmp_path / 'run', max_epochs=2, resume=True)
    runner.train()
    assert runner.iter == 4
    assert not canary.exists()
    Config.fromstring(checkpoint['meta']['config'], '.py')
    assert canary.exists()


def test_another_wrapper_of_the_loader_is_no_excuse(tmp_path, monkeypatch):
    canary, path = tmp_path / 'canary', tmp_path / 'evil.pth'
    torch.save({'state_dict': {}, 'meta': Call(os.system, f'touch {canary}')}, path)
    guarded = CheckpointLoader.load_checkpoint.__func__

    @functools.wraps(guarded.__wrapped__)
    def other(cls, *args, **kwargs):
        return guarded.__wrapped__(cls, *args, **kwargs)

    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', classmethod(other))
    compat.refuse_other_checkpoints()
    assert CheckpointLoader.load_checkpoint.__func__ is not other
    compat.refuse_other_checkpoints()
    assert CheckpointLoader.load_checkpoint.__func__.__wrapped__ is other
    with pytest.raises(pickle.UnpicklingError, match='TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1'):
        load(path)
    assert not canary.exists()


def test_threads_load_one_after_the_other():
    entered, left = threading.Event(), []

    def other():
        with compat.weights_only():
            left.append(os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'])

    with compat.weights_only():
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait(0.1)
        assert left == []
    thread.join()
    assert left == ['1']
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_reading_weights_alone_is_asked_of_torch_while_mmengine_loads(tmp_path, monkeypatch):
    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': {}, 'meta': Call(divmod, 7, 2)}, path)
    for before in ('0', None):
        monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', before or '')
        if before is None:
            monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
        with pytest.raises(pickle.UnpicklingError, match=REFUSED):
            load(path)
        assert os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD') == before
        assert torch.load(path, weights_only=False)['meta'] == (3, 1)
    # A user who trusts a checkpoint says so as in every program with torch.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    load(path)


@pytest.mark.parametrize(
    'attack',
    [
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, HistoryBuffer, 'register_statistics'),
        Call(getattr, HistoryBuffer, 'statistics'),
        # The globals of an allowed method would reach every module that mmengine imported.
        Call(getattr, Call(getattr, HistoryBuffer, 'mean'), '__globals__'),
        Call(getattr, torch.Tensor, 'mean'),
        Call(getattr, {}, 'keys'),
    ],
    ids=['init', 'register', 'statistics', 'globals', 'other-class', 'instance'],
)
def test_getattr_reaches_nothing_but_the_statistics(attack, tmp_path):
    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': {}, 'message_hub': attack}, path)
    torch.load(path, weights_only=False)
    compat.allow_mmengine_checkpoints()
    with pytest.raises(pickle.UnpicklingError, match='may take only min, max, mean, current'):
        load(path)


def test_getattr_of_a_module_is_refused(tmp_path):
    canary, path = tmp_path / 'canary', tmp_path / 'evil.pth'
    system = Call(getattr, Call(importlib.import_module, 'os'), 'system')

    class Attack:
        def __reduce__(self):
            return eval, ('system(command)', {'command': f'touch {canary}', 'system': system})

    torch.save({'state_dict': {}, 'message_hub': Attack()}, path)
    compat.allow_mmengine_checkpoints()
    with pytest.raises(pickle.UnpicklingError, match=REFUSED):
        load(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()
    with pytest.raises(pickle.UnpicklingError, match="got 'system' of <module 'os'"):
        compat.history_buffer_statistic(os, 'system')


def test_a_statistic_cannot_be_called_by_a_checkpoint(tmp_path):
    path = tmp_path / 'evil.pth'

    class Attack:
        def __reduce__(self):
            return HistoryBuffer.mean, (HistoryBuffer([1.0], [1]),)

    torch.save({'state_dict': {}, 'message_hub': Attack()}, path)
    compat.allow_mmengine_checkpoints()
    with pytest.raises(pickle.UnpicklingError, match=REFUSED):
        load(path)


def test_allowing_is_idempotent_and_silent(capfd, recwarn):
    compat.allow_mmengine_checkpoints()
    before = set(map(str, torch.serialization.get_safe_globals()))
    compat.allow_mmengine_checkpoints()
    assert set(map(str, torch.serialization.get_safe_globals())) == before
    assert capfd.readouterr() == ('', '')
    assert not recwarn.list


@pytest.mark.parametrize('name', ['min', 'max', 'mean', 'current'])
def test_statistics_of_history_buffer_are_given(name):
    assert compat.history_buffer_statistic(HistoryBuffer, name) is getattr(HistoryBuffer, name)


def test_a_lookalike_of_history_buffer_is_refused():
    class Lookalike(HistoryBuffer):
        pass

    class Name(str):
        pass

    for owner, name in (
        (Lookalike, 'mean'),
        (HistoryBuffer, Name('mean')),
        (HistoryBuffer, 'data'),
    ):
        with pytest.raises(pickle.UnpicklingError, match='may take only'):
            compat.history_buffer_statistic(owner, name)


# Configs by the name of this package


def test_a_base_of_this_package_keeps_the_scope_of_the_config(tmp_path):
    name = 'sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
    path = tmp_path / 'own.py'
    path.write_text(f"_base_ = 'sapa_mm::{name}'\nval_evaluator = {{{{_base_.val_evaluator}}}}\n")
    got = Config.fromfile(path).to_dict()
    expected = Config.fromfile(Path(__file__).parents[1] / 'configs' / name).to_dict()
    # In mmengine's own scheme the metric, which mmseg's base has not, would be sapa_mm's.
    assert got == expected
    assert [metric['type'] for metric in got['val_evaluator']] == ['IoUMetric', 'BoundaryIoU']


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    ],
)
def test_configs_of_other_packages_keep_theirs(tmp_path, name):
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = {name!r}\n')
    assert Config.fromfile(path).model._scope_ == name.partition('::')[0]
