"""tools/reconstruct.py: a small training end to end, and what a second run does."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from sapa_mm.reconstruction import IdxImages
from sapa_mm.tools import reconstruct

ROWS = ('conv-nearest', 'paired-max-unpooling')


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    """The runner sets a default scope; the next test shall not find it."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


@pytest.fixture
def arguments(tmp_path, data_root) -> list[str]:
    options = f'--data-root {data_root} --work-dir {tmp_path / "work"} --epochs 2'
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
        checkpoint = torch.load(folder / row / 'epoch_2.pth')
        model = MODELS.build(Config.fromfile(reconstruct.CONFIGS / result['config']).model)
        model.load_state_dict(checkpoint['state_dict'])
        with torch.no_grad():
            error = model.eval()(images) - images
        assert result['RMSE'] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-4)
        assert result['MAE'] == pytest.approx(error.abs().mean().item(), rel=1e-4)
        assert result['PSNR'] == pytest.approx(-20 * np.log10(result['RMSE']))


def test_a_second_run_skips_what_is_finished(arguments, folder, capsys):
    reconstruct.main([*arguments[:-1], ROWS[0]])
    assert [row[0] for row in table_of(folder)] == [ROWS[0]]
    first = folder / ROWS[0]
    kept = json.loads((first / 'result.json').read_text()) | {'PSNR': 99.0}
    (first / 'result.json').write_text(json.dumps(kept))
    checkpoint = (first / 'epoch_2.pth').stat().st_mtime_ns
    capsys.readouterr()

    reconstruct.main([*arguments[:-1], ROWS[1]])  # without the first, whose figures stay
    assert table_of(folder)[0][:2] == [ROWS[0], '99.00']
    assert {row[0] for row in table_of(folder)} == set(ROWS)
    reconstruct.main(arguments)
    said = capsys.readouterr().out
    assert all(f'[{i}/2] {row}: finished before' in said for i, row in enumerate(ROWS, start=1))
    assert (first / 'epoch_2.pth').stat().st_mtime_ns == checkpoint

    # Other epochs are another comparison.
    options = reconstruct.parse_arguments([*arguments, '--epochs', '3'])
    assert options.folder == folder.with_name('3e')
    options = reconstruct.parse_arguments([*arguments, '--train-images', '7'])
    assert options.folder == folder.with_name('2e-7')


def test_goes_on_where_it_was_interrupted(arguments, folder, monkeypatch):
    arguments = [*arguments[:-1], ROWS[0]]
    epochs = []
    stop = True
    after_epoch = reconstruct.EpochTimer.after_train_epoch

    def count(self, runner):
        epochs.append(runner.epoch)
        if stop and runner.epoch == 1:
            raise KeyboardInterrupt
        after_epoch(self, runner)

    monkeypatch.setattr(reconstruct.EpochTimer, 'after_train_epoch', count)
    with pytest.raises(KeyboardInterrupt):
        reconstruct.main(arguments)
    assert not (folder / 'results.md').exists()
    stop = False
    reconstruct.main(arguments)
    assert epochs == [0, 1, 1]  # the second epoch again, not the first

    # It is trained to the end now, but not tested.
    tested = json.loads((folder / ROWS[0] / 'result.json').read_text())
    (folder / ROWS[0] / 'result.json').unlink()
    reconstruct.main(arguments)
    assert epochs == [0, 1, 1]
    again = json.loads((folder / ROWS[0] / 'result.json').read_text())
    assert again['seconds_per_epoch'] is None
    assert all(again[name] == tested[name] for name in reconstruct.METRICS)


def test_the_learning_rate_falls_at_the_same_shares(data_root):
    path = reconstruct.find_configs('mnist')['conv-nearest']
    cfg = Config.fromfile(path)
    reconstruct.set_epochs(cfg, 3, 60_000)
    assert cfg.train_cfg.max_epochs == 3
    # An epoch has 600 iterations; these are .5, .7 and .85 of 1,800.
    assert cfg.param_scheduler.milestones == [900, 1260, 1530]
    assert not cfg.param_scheduler.by_epoch
    cfg = Config.fromfile(path)
    reconstruct.set_epochs(cfg, 100, 60_000)
    assert cfg.param_scheduler == Config.fromfile(path).param_scheduler


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('--rows conv-nearest,conv-sapa', '--rows: expected some of conv-a2u, .* got conv-sapa'),
        ('--epochs 0', '--epochs: expected a positive int, got 0$'),
        ('--epochs 2.5', r'--epochs: expected a positive int, got 2\.5$'),
        ('--train-images 21', 'num_images: expected at most the 20 of .*, got 21'),
        ('--dataset cifar', "--dataset: invalid choice: 'cifar'"),
        ('--data-root {empty}', 'data_root: expected {empty}/train-images-idx3-ubyte, with or'),
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
