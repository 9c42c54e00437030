import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sapa_mm.tools.benchmark import command as benchmark
from sapa_mm.tools.benchmark import training
from sapa_mm.tools.benchmark.rows import TRAINING_PASSES, TrainingRow
from sapa_mm.tools.configs import read_config
from sapa_mm.tools.errors import ToolError

ROOT = Path(__file__).resolve().parents[2]
STOCK = ROOT / 'configs' / '_base_' / 'segformer_mit-t_1xb8-600_toy-160x160.py'
DETECTOR = ROOT / 'configs' / 'baseline' / 'faster-rcnn_r50_fpn_nearest_1x_coco.py'
SIZE = (64, 96)
CPU = torch.device('cpu')


def write_config(folder: Path, name: str, head: str = '') -> Path:
    path = folder / f'{name}.py'
    path.write_text(f'_base_ = {str(STOCK)!r}\nmodel = dict(decode_head=dict({head}))\n')
    return path


def run(*options: object) -> int:
    options = ('--train-step', '--batch', 2, '--image-size', *SIZE, *options)
    return benchmark.main([*map(str, options), '--rounds', '1', '--device', 'cpu'])


def test_steps_beside_the_first(tmp_path, capsys):
    head = "type='GuidedSegformerHead', upsample_cfg=dict(type='SAPA', embed_dims=8)"
    names = [
        str(write_config(tmp_path, 'broken', 'channels=-1')),
        str(write_config(tmp_path, 'stock')),
        str(write_config(tmp_path, 'sapa', head)),
        str(write_config(tmp_path, 'infinite', "loss_decode=dict(loss_weight=float('inf'))")),
    ]
    out = tmp_path / 'training.json'
    assert run('--models', *names, '--json', out) == 1
    printed = capsys.readouterr()
    record = json.loads(out.read_text())
    assert list(record) == ['environment', 'batch', 'size', 'training']
    assert (record['batch'], record['size']) == (2, list(SIZE))
    rows = record['training']
    assert [row['config'] for row in rows] == names
    for row in rows:
        assert list(row) == ['config', 'dtype', 'loss', *TRAINING_PASSES]
        assert row['dtype'] == 'float32'
    broken, stock, sapa, infinite = rows
    assert broken['loss'] is infinite['loss'] is None  # JSON has no NaN
    for label in TRAINING_PASSES:
        assert broken[label]['refused'] is False
        assert infinite[label] == {'not_timed': 'its loss is nan', 'refused': True}
        # Ratios are to the first that could be timed.
        assert stock[label]['time_over_first'] == 1
        ratio = sapa[label]['ms'] / stock[label]['ms']
        assert sapa[label]['time_over_first'] == pytest.approx(ratio)
        assert stock[label]['peak_bytes'] is stock[label]['peak_over_first'] is None
    for row in (stock, sapa):
        # Eleven classes at random: log 11 is 2.4.
        assert 1.5 < row['loss'] < 5
        assert 0 < row['prediction']['ms'] < row['train step']['ms']
    assert f'| sapa | float32 | {sapa["train step"]["ms"]:.1f} ms (' in printed.out
    assert '| infinite | float32 | not timed: its loss is nan | - |' in printed.out
    assert f'{names[3]} is not timed: its loss is nan (float32)' in printed.err
    assert 'paramwise_options' not in printed.out + printed.err


def make(cfg_path: Path, batch: int = 3) -> training.Trainee:
    torch.manual_seed(0)
    return training.Trainee(read_config(str(cfg_path)), batch, SIZE, 'float32', CPU)


def test_a_step_trains_and_a_prediction_does_not(tmp_path):
    norm = "norm_cfg=dict(type='SyncBN', requires_grad=True)"
    trainee = make(write_config(tmp_path, 'sync', norm))
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in trainee.model.modules())
    assert any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in trainee.model.modules())
    sizes, modes = [], []

    def note(module, inputs):
        sizes.append(tuple(inputs[0].shape))
        modes.append(module.training)

    trainee.model.backbone.register_forward_pre_hook(note)
    before = {name: p.clone() for name, p in trainee.model.named_parameters()}
    losses = trainee.step()
    assert losses['loss'].grad_fn is None
    changed = {n for n, p in trainee.model.named_parameters() if not torch.equal(p, before[n])}
    assert 'decode_head.conv_seg.weight' in changed
    assert len(changed) > 0.9 * len(before)
    assert all(p.grad is None for p in trainee.model.parameters())
    after = {name: x.clone() for name, x in trainee.model.state_dict().items()}
    trainee.model.eval()
    trainee.predict()
    assert all(torch.equal(x, after[name]) for name, x in trainee.model.state_dict().items())
    assert sizes == [(3, 3, *SIZE), *[(1, 3, *SIZE)] * training.PREDICTIONS]
    assert modes == [True, *[False] * training.PREDICTIONS]
    labels = torch.stack([sample.gt_sem_seg.data for sample in trainee.samples])
    assert labels.shape == (3, 1, *SIZE)
    assert sorted(labels.unique().tolist()) == list(range(11))


def test_losses_fall_on_the_same_images(tmp_path):
    trainee = make(write_config(tmp_path, 'stock'), batch=1)
    losses = [float(trainee.step()['loss']) for _ in range(12)]
    assert losses[-1] < losses[0]


def test_figures_are_medians_of_the_rounds(tmp_path):
    def timed(seconds, peak):
        found = training.Timed(None, TrainingRow('x', 'float16'), 0)
        found.seconds['train step'], found.peaks['train step'] = seconds, peak
        return found

    first, other = timed([0.1, 0.2, 0.4], 2**30), timed([0.3, 0.2, 0.1], 3 * 2**29)
    found = training.summarize(other, first, 'train step')
    assert found.ms == pytest.approx(200)
    assert found.ms_min_max == pytest.approx((100, 300))
    assert found.time_over_first == pytest.approx(1)  # of 3, 1 and 0.25
    assert (found.peak_bytes, found.peak_over_first) == (3 * 2**29, 1.5)
    row = other.row
    row.passes = {'train step': found, 'prediction': found}
    assert '200.0 ms (1.00x) | 1,536 (1.50x)' in training.training_table([row])


def test_one_that_fails_later_is_left_out(tmp_path, monkeypatch):
    names = [str(write_config(tmp_path, name)) for name in ('first', 'second')]
    original, calls = training.Trainee.step, []

    def step(self):
        calls.append(self)
        # The first model's steps of the warm-up are over, and so are the second's.
        if len(calls) == 2 * training.WARM_UP + 1:
            raise RuntimeError('full')
        return original(self)

    monkeypatch.setattr(training.Trainee, 'step', step)
    first, second = training.train_in_turns(names, SIZE, 1, 1, 'float32', CPU)
    for label in TRAINING_PASSES:
        assert first.passes[label].reason == 'RuntimeError: full'
        assert second.passes[label].time_over_first == 1


def test_a_detector_is_refused(tmp_path):
    out = tmp_path / 'training.json'
    with pytest.raises(ToolError, match='expected a config of mmsegmentation') as refused:
        run('--models', STOCK, DETECTOR, '--json', out)
    assert str(DETECTOR) in str(refused.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--train-step'], 'argument --train-step: not allowed without --models'),
        (
            ['--train-step', '--models', str(STOCK), '--dtypes', 'float16', '--device', 'cpu'],
            'argument --dtypes: expected float32 on a CPU, got float16',
        ),
        (
            ['--train-step', '--models', str(STOCK), '--size', '8', '8'],
            'argument --size: not allowed with --models',
        ),
    ],
)
def test_refused_options(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
