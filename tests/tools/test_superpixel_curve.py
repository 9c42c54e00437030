"""Curves of accuracy and boundary recall over the number of superpixels."""

import functools
import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from skimage.segmentation import slic
from testing_superpixels import stripes, write_stripe_model

from sapa_mm.segmentation import achievable_segmentation_accuracy, boundary_recall
from sapa_mm.tools import superpixels as tool
from sapa_mm.tools.toy_dataset import command as toy

NUMBERS = (5, 40)
LIGHTNESS = 50


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('curve')
    options = toy.Options(num_train=1, num_val=3, size=(64, 80), layouts=('bsds',))
    toy.make_dataset(folder / 'toy', options)
    return folder / 'toy' / 'bsds'


def run(out, *options):
    tool.main(['--curve', *map(str, options), '--out', str(out / 'curve.png')], 'sapa-mm x')
    with Image.open(out / 'curve.png') as picture:
        assert picture.size == (1800, 540)


def record_of(out, *options):
    run(out, *options, '--json', out / 'curve.json')
    return json.loads((out / 'curve.json').read_text())


def expected_point(data_root, number, find, count=3):
    """The means over all pairs of the first images and their annotations, by SciPy and loops."""
    rows = []
    for path in sorted((data_root / 'images/test').glob('*.jpg'))[:count]:
        image = cv2.imread(str(path))[..., ::-1]
        superpixels = find(image, number)
        table = loadmat(data_root / f'groundTruth/test/{path.stem}.mat')['groundTruth']
        for person in range(table.shape[1]):
            truth = table[0, person]['Segmentation'][0, 0].astype(int)
            rows.append(
                (
                    achievable_segmentation_accuracy(superpixels, truth, ignore_index=-1),
                    boundary_recall(superpixels, truth, ignore_index=-1),
                    boundary_recall(superpixels, truth, ignore_index=-1, form='seal'),
                    len(np.unique(superpixels)),
                )
            )
    means = dict(zip(('ASA', 'BR', 'BR-SEAL', 'count'), np.mean(rows, axis=0), strict=True))
    return {'number': number, 'pairs': len(rows), **means}


def check(points, expected):
    assert len(points) == len(expected)
    for got, point in zip(points, expected, strict=True):
        assert got == pytest.approx(point)
        assert got['pairs'] >= 4


def test_curves_of_models_and_slic(data_root, tmp_path, capsys):
    models = [write_stripe_model(tmp_path, 'elsewhere', light) for light in (LIGHTNESS, 200)]
    options = ['--model', 'stripes', *models[0], '--model', 'plain', *models[1], '--slic']
    options += ['--data-root', data_root, '--numbers', *NUMBERS[::-1]]
    record = record_of(tmp_path, *options)
    assert [curve['name'] for curve in record['curves']] == ['SLIC', 'stripes', 'plain']
    by_slic, by_model, by_other = (curve['points'] for curve in record['curves'])
    check(
        by_model,
        [expected_point(data_root, n, lambda i, k: stripes(i, k, LIGHTNESS)) for n in NUMBERS],
    )
    check(
        by_other, [expected_point(data_root, n, lambda i, k: stripes(i, k, 200)) for n in NUMBERS]
    )
    assert [point['count'] for point in by_other] == list(NUMBERS)
    assert by_model[0]['ASA'] > by_other[0]['ASA']
    check(by_slic, [expected_point(data_root, n, slic) for n in NUMBERS])
    assert by_slic[1]['count'] != NUMBERS[1]

    assert record['images'] == 3
    assert record['curves'][0]['options']['compactness'] == 10
    assert record['curves'][1]['checkpoint'] == str(models[0][1])
    assert record['curves'][1]['test_cfg'] == {'numbers': list(NUMBERS)}
    assert record['boundary_recall'] == {'BR': 'stutz', 'BR-SEAL': 'seal'}
    assert {'torch', 'sapa_mm', 'scikit-image'} <= set(record['versions'])
    assert record['command'].startswith('sapa-mm x --curve --model stripes')
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / 'curve.png')
    (row,) = (line for line in lines if line.startswith('| plain') and ' 40 ' in line)
    assert f'{by_other[1]["ASA"]:.4f}' in row and ' 40.0 ' in row
    names = {'curve.png', 'curve.json', *(path.name for pair in models for path in pair)}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_the_configs_own_test_and_the_first_images(data_root, tmp_path):
    model = write_stripe_model(tmp_path, data_root, LIGHTNESS)
    record = record_of(tmp_path, '--model', 'stripes', *model, '--numbers', 7, '--images', 2)
    assert record['images'] == 2
    find = functools.partial(stripes, lightness=LIGHTNESS)
    expected = expected_point(data_root, 7, find, count=2)
    check(record['curves'][0]['points'], [expected])
    # There are no more than the test has.
    record = record_of(tmp_path, '--model', 'stripes', *model, '--numbers', 7, '--images', 99)
    assert record['images'] == 3


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(['--curve', '--help'], 'sapa-mm superpixels')
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    usage = 'usage: sapa-mm superpixels --curve [-h]', 'sapa-mm superpixels --curve --data-root'
    for word in (*usage, '--model', '--slic', '--numbers', '--images', 'compactness=10.0', '\\\n'):
        assert word in text


def refused(out, capsys, *options):
    """Return the sentence with which the tool refuses, having written nothing."""
    before = sorted(out.rglob('*'))
    with pytest.raises(SystemExit) as stopped:
        run(out, *options, '--json', out / 'curve.json')
    assert stopped.value.code == 2
    assert sorted(out.rglob('*')) == before
    return capsys.readouterr().err.splitlines()[-1]


def test_contradicting_options(data_root, tmp_path, capsys):
    model = write_stripe_model(tmp_path, data_root, LIGHTNESS)
    assert '--model, --slic or both' in refused(tmp_path, capsys, '--data-root', data_root)
    assert '--data-root' in refused(tmp_path, capsys, '--slic')
    twice = ['--model', 'a', *model, '--model', 'a', *model]
    assert 'got a, a' in refused(tmp_path, capsys, *twice)
    assert 'got SLIC, SLIC' in refused(tmp_path, capsys, '--slic', '--model', 'SLIC', *model)
    options = ['--slic', '--data-root', data_root, '--numbers']
    assert 'positive int, got 0' in refused(tmp_path, capsys, *options, 0)
    assert 'at most 5120' in refused(tmp_path, capsys, *options, 5121)


def test_missing_and_damaged_data(data_root, tmp_path, capsys):
    options = ['--slic', '--numbers', 5, '--data-root']
    assert 'images/test' in refused(tmp_path, capsys, *options, tmp_path / 'missing')
    copy = tmp_path / 'copy'
    shutil.copytree(data_root, copy)
    path = copy / 'groundTruth/test/000002.mat'
    savemat(path, dict(other=np.ones(3)))
    sentence = refused(tmp_path, capsys, *options, copy)
    assert "expected 'groundTruth' in" in sentence and '000002.mat' in sentence
    shutil.copy(data_root / 'groundTruth/test/000001.mat', path)
    cv2.imwrite(str(copy / 'images/test/000002.jpg'), np.zeros((70, 80, 3), np.uint8))
    sentence = refused(tmp_path, capsys, *options, copy)
    assert '000002.jpg' in sentence and '(64, 80)' in sentence and '(70, 80)' in sentence
    path.unlink()
    assert '000002.mat' in refused(tmp_path, capsys, *options, copy)


def test_models_that_do_not_fit(data_root, tmp_path, capsys):
    config, checkpoint = write_stripe_model(tmp_path, data_root, LIGHTNESS)
    missing = tmp_path / 'missing.pth'
    assert str(missing) in refused(tmp_path, capsys, '--model', 'a', config, missing)
    other = tmp_path / 'ade.py'
    other.write_text(config.read_text().replace('BSDS500Dataset', 'ADE20KDataset'))
    sentence = refused(tmp_path, capsys, '--model', 'a', other, checkpoint)
    assert 'expected a test of BSDS500Dataset, got ADE20KDataset' in sentence
    # One that predicts other numbers than it is asked for, and one that predicts none.
    other.write_text(config.read_text().replace('StripeSegmentor', 'StubbornSegmentor'))
    sentence = refused(tmp_path, capsys, '--model', 'a', other, checkpoint, '--numbers', 5)
    assert '(5,)' in sentence and 'got (3,) from StubbornSegmentor' in sentence
    other.write_text(config.read_text().replace('StripeSegmentor', 'SilentSegmentor'))
    sentence = refused(tmp_path, capsys, '--model', 'a', other, checkpoint, '--numbers', 5)
    assert 'got no such numbers from SilentSegmentor' in sentence
