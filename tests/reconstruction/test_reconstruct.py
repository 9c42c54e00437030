"""tools/reconstruct.py: a small training end to end, and what a second run does."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from sapa_mm.reconstruction import IdxImages
from sapa_mm.reconstruction.training import Training
from sapa_mm.tools import reconstruct
from sapa_mm.tools.compare.runs import locked

ROWS = ('conv-nearest', 'paired-max-unpooling')


@pytest.fixture
def arguments(tmp_path, data_root) -> list[str]:
    options = f'--data-root {data_root} --work-dir {tmp_path / "work"} --epochs 2 --device cpu'
    return [*options.split(), '--rows', ','.join(ROWS)]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / 'work' / 'fashion-mnist' / '2e'


def table_of(folder: Path) -> list[list[str]]:
    lines = (folder / 'results.md').read_text().splitlines()
    return [line.strip('| ').split(' | ') for line in lines if line.startswith('| ')][2:]


def test_trains_tests_and_writes_the_table(arguments, folder, data_root):
    reconstruct.main(arguments)
    results = json.loads((folder / 'results.json').read_text())
    assert [row['PSNR'] for row in results] == sorted((r['PSNR'] for r in results), reverse=True)
    by_row = {result['row']: result for result in results}
    assert by_row.keys() == set(ROWS)
    assert [by_row[row]['parameters'] for row in ROWS] == [970_113, 776_129]
    assert [row[0] for row in table_of(folder)] == [result['row'] for result in results]

    images = torch.stack([sample['inputs'] for sample in IdxImages(data_root, 'test')])
    for row, result in by_row.items():
        assert (result['epochs'], result['train_images'], result['test_images']) == (2, 20, 12)
        assert result['seconds_per_epoch'] > 0
        assert json.loads((folder / row / 'result.json').read_text()) == result
        # The figures are what its weights, trained for two epochs, give for the test images.
        checkpoint = torch.load(folder / row / 'checkpoint.pth', weights_only=True)
        model = MODELS.build(Config.fromfile(reconstruct.CONFIGS / result['config']).model)
        model.load_state_dict(checkpoint['state_dict'])
        with torch.no_grad():
            error = model.eval()(images) - images
        assert result['RMSE'] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-4)
        assert result['MAE'] == pytest.approx(error.abs().mean().item(), rel=1e-4)
        assert result['PSNR'] == pytest.approx(-20 * np.log10(result['RMSE']))
        # The curve ends there.
        assert [point['epoch'] for point in result['curve']] == [1, 2]
        assert all(result['curve'][1][name] == result[name] for name in reconstruct.METRICS)
        assert result['curve'][0]['PSNR'] != result['PSNR']
    assert (folder / 'curve.png').read_bytes().startswith(b'\x89PNG')


def test_a_training_can_be_repeated(arguments, folder):
    found = []
    for _ in range(2):
        reconstruct.main(arguments)
        results = json.loads((folder / 'results.json').read_text())
        found.append({result['row']: result['curve'] for result in results})
        shutil.rmtree(folder)
    assert found[0] == found[1]


def test_the_curve_has_few_points_and_the_last_epoch(arguments, folder):
    reconstruct.main([*arguments, '--rows', ROWS[0], '--epochs', '41', '--train-images', '2'])
    result = json.loads((folder.with_name('41e-2') / ROWS[0] / 'result.json').read_text())
    assert [point['epoch'] for point in result['curve']] == [*range(2, 41, 2), 41]


def test_a_second_run_skips_what_is_finished(arguments, folder, capsys):
    reconstruct.main([*arguments[:-1], ROWS[0]])
    assert [row[0] for row in table_of(folder)] == [ROWS[0]]
    first = folder / ROWS[0]
    kept = json.loads((first / 'result.json').read_text()) | {'PSNR': 99.0}
    (first / 'result.json').write_text(json.dumps(kept))
    checkpoint = (first / 'checkpoint.pth').stat().st_mtime_ns
    capsys.readouterr()

    reconstruct.main([*arguments[:-1], ROWS[1]])  # without the first, whose figures stay
    assert table_of(folder)[0][:2] == [ROWS[0], '99.00']
    assert {row[0] for row in table_of(folder)} == set(ROWS)
    reconstruct.main(arguments)
    said = capsys.readouterr().out
    assert all(f'[{i}/2] {row}: finished before' in said for i, row in enumerate(ROWS, start=1))
    assert (first / 'checkpoint.pth').stat().st_mtime_ns == checkpoint

    # Other epochs are another comparison.
    options = reconstruct.parse_arguments([*arguments, '--epochs', '3'])
    assert options.folder == folder.with_name('3e')
    options = reconstruct.parse_arguments([*arguments, '--train-images', '7'])
    assert options.folder == folder.with_name('2e-7')


def test_goes_on_where_it_was_interrupted(arguments, folder, monkeypatch):
    arguments = [*arguments, '--rows', ROWS[0]]
    reconstruct.main(arguments)
    whole = json.loads((folder / ROWS[0] / 'result.json').read_text())
    shutil.rmtree(folder)

    epochs = []
    stop = True
    epoch_steps = Training.epoch_steps

    def count(self):
        epochs.append(self.epoch)
        for step in epoch_steps(self):
            if stop and self.epoch == 1:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(Training, 'epoch_steps', count)
    with pytest.raises(KeyboardInterrupt):
        reconstruct.main(arguments)
    assert not (folder / 'results.md').exists()
    stop = False
    reconstruct.main(arguments)
    assert epochs == [0, 1, 1]  # the second epoch again, not the first
    result = json.loads((folder / ROWS[0] / 'result.json').read_text())
    assert result['curve'] == whole['curve']

    # It is trained and tested to the end now, but its result was not written.
    (folder / ROWS[0] / 'result.json').unlink()
    reconstruct.main(arguments)
    assert epochs == [0, 1, 1]
    assert json.loads((folder / ROWS[0] / 'result.json').read_text()) == result


def test_what_another_process_trains_is_left_to_it(arguments, folder, capsys):
    (folder / ROWS[0]).mkdir(parents=True)
    with locked(folder / ROWS[0]):
        reconstruct.main(arguments)
    assert f'[1/2] {ROWS[0]}: another process works on it' in capsys.readouterr().out
    assert [row[0] for row in table_of(folder)] == [ROWS[1]]


def test_a_row_that_fails_does_not_stop_the_others(arguments, folder, capsys):
    (folder / ROWS[0]).mkdir(parents=True)
    (folder / ROWS[0] / 'checkpoint.pth').write_bytes(b'damaged')
    with pytest.raises(SystemExit, match=f'failed: {ROWS[0]}; '):
        reconstruct.main(arguments)
    assert 'Traceback' in capsys.readouterr().err
    assert [row[0] for row in table_of(folder)] == [ROWS[1]]


def test_rows_take_turns():
    taken = []

    def steps(row: str, count: int) -> Iterator[None]:
        for step in range(count):
            taken.append(f'{row}{step}')
            if row == 'b':
                raise ValueError(row)
            yield

    runs = {row: steps(row, count) for row, count in dict(a=3, b=2, c=1, d=2).items()}
    failed = reconstruct.run_side_by_side(runs, 2, torch.device('cpu'))
    assert failed == ['b']
    assert taken == ['a0', 'b0', 'a1', 'c0', 'a2', 'd0', 'd1']


def test_the_learning_rate_falls_at_the_same_shares():
    cfg = Config.fromfile(reconstruct.find_configs('mnist')['conv-nearest'])
    # An epoch has 600 steps; these are .5, .7 and .85 of 1,800 and of 60,000.
    assert reconstruct.milestones(cfg, 3, 600) == [900, 1260, 1530]
    assert reconstruct.milestones(cfg, 100, 600) == [30_000, 42_000, 51_000]


def test_a_row_is_trained_as_its_config_says(arguments):
    options = reconstruct.parse_arguments([*arguments, '--epochs', '10'])
    cfg = reconstruct.read_config(options.rows[ROWS[0]], options)
    training = reconstruct.build(cfg, options)
    assert training.model.training
    weight = training.model.encoder[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    group = training.optimizer.param_groups[0]
    assert (group['lr'], group['momentum'], training.gamma) == (0.01, 0.9, 0.1)
    assert (training.batch_size, training.steps, training.seed) == (100, 1, 0)
    assert training.milestones == (5, 7, 8)
    # The weights are drawn by the config's seed, whatever was drawn before.
    torch.manual_seed(7)
    again = reconstruct.build(cfg, options).model.encoder[1][0].weight
    assert torch.equal(weight, again)
    cfg.randomness.seed = 1
    assert not torch.equal(weight, reconstruct.build(cfg, options).model.encoder[1][0].weight)


def test_all_rows_are_the_default(arguments):
    configs = reconstruct.find_configs('fashion-mnist')
    without = [argument for argument in arguments if argument not in ('--rows', ','.join(ROWS))]
    assert reconstruct.parse_arguments(without).rows == configs
    assert reconstruct.parse_arguments([*without, '--all']).rows == configs
    assert len(configs) == 17


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('--rows conv-nearest,conv-sapa', '--rows: expected some of conv-a2u, .* got conv-sapa'),
        ('--epochs 0', '--epochs: expected a positive int, got 0$'),
        ('--epochs 2.5', r'--epochs: expected a positive int, got 2\.5$'),
        ('--train-images 21', 'num_images: expected at most the 20 of .*, got 21'),
        ('--dataset cifar', "--dataset: invalid choice: 'cifar'"),
        ('--data-root {empty}', 'data_root: expected {empty}/train-images-idx3-ubyte, with or'),
        ('--device tpu', '--device: expected cpu, cuda or cuda:N, got tpu; on CPUs: --device cpu'),
        ('--device cuda:99', 'there, got cuda:99 of .* GPUs; on CPUs: --device cpu'),
        ('--jobs 2', '--jobs: expected 1 on CPUs, got 2; start the same command again'),
        ('--jobs 0', '--jobs: expected a positive int, got 0'),
        ('--all', '--all: not allowed with argument --rows'),
        ('--work-dir {file}', '--work-dir: expected a folder, got the file {file}'),
    ],
)
def test_bad_arguments(option, message, arguments, tmp_path, capsys):
    places = dict(empty=tmp_path / 'empty', file=tmp_path / 'file')
    places['file'].touch()
    with pytest.raises(SystemExit) as caught:
        reconstruct.main([*arguments, *option.format(**places).split()])
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message.format(**places), line), line
    assert not (tmp_path / 'work').exists()


def test_a_damaged_test_file_is_found_before_training(arguments, data_root, tmp_path, capsys):
    path = data_root / 't10k-images-idx3-ubyte.gz'
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SystemExit):
        reconstruct.main(arguments)
    assert f'{path}: expected a gzip file that is whole' in capsys.readouterr().err
    assert not (tmp_path / 'work').exists()
