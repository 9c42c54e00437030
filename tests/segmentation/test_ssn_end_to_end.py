"""Superpixels with real processes: toy data, training, testing, curves and pictures."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from testing_configs import ROOT
from testing_processes import run_command as run

TOOLS = ROOT / 'tools'
HCSSN = ROOT / 'configs' / 'ssn' / 'hcssn-tiny_1xb4-200_toy-96x96.py'
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
NAMES = [f'{kind}/k{k}' for k in (50, 100) for kind in ('ASA', 'BR', 'BR-SEAL', 'count')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Make a folder with toy data where the tiny configs look for them."""
    folder = tmp_path_factory.mktemp('project')
    make = [TOOLS / 'make_toy_dataset.py', '--out', 'data/toy', '--layouts', 'bsds']
    run(folder, sys.executable, *make, '--num-train', 6, '--num-val', 2, '--size', 128)
    return folder


@pytest.fixture(scope='module')
def trained(folder) -> Path:
    """Train HCSSN."""
    work = folder / 'work' / 'hcssn'
    run(folder, sys.executable, TOOLS / 'train.py', HCSSN, '--work-dir', work,
        '--cfg-options', *SHORT)  # fmt: skip
    return work


def scalars(work: Path) -> dict:
    log = sorted(work.glob('*/vis_data/scalars.json'))[-1]
    return json.loads(log.read_text().splitlines()[-1])


def test_training_validates(trained):
    last = scalars(trained)
    assert last.keys() >= set(NAMES)
    for k in (50, 100):
        # Fragments become superpixels of their own when they are connected.
        assert k / 2 < last[f'count/k{k}'] < 4 * k
        assert 50 < last[f'ASA/k{k}'] <= 100
    assert last['ASA/k100'] > last['ASA/k50']


def test_curves_and_pictures_of_the_checkpoint(folder, trained):
    tool = [sys.executable, TOOLS / 'superpixels.py']
    checkpoint = trained / 'iter_2.pth'
    run(folder, *tool, '--curve', '--slic', '--model', 'HCSSN', HCSSN, checkpoint, '--numbers', 50,
        100, '--json', 'curve.json', '--out', 'curve.png')  # fmt: skip
    text = (folder / 'curve.json').read_text()
    last = scalars(trained)
    for name in ('ASA', 'BR', 'BR-SEAL'):
        # The tool gives shares, the metric percent with two digits.
        assert any(abs(100 * value - last[f'{name}/k100']) < 0.011 for value in numbers(text)), name
    (image,) = sorted(folder.glob('data/toy/bsds/images/test/*.jpg'))[:1]
    annotations = folder / 'data/toy/bsds/groundTruth/test' / f'{image.stem}.mat'
    run(folder, *tool, HCSSN, checkpoint, image, '--annotations', annotations, '--out', 'out.png')
    assert Image.open(folder / 'out.png').size[0] > 3 * 128


def numbers(text: str) -> list[float]:
    """All numbers in a JSON, wherever they are."""
    found: list[float] = []
    json.loads(text, parse_float=lambda digits: found.append(float(digits)))
    return found
