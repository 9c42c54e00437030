"""What becomes of CamVid's published folders, and what is said of wrong ones."""

import re

import numpy as np
import pytest
from PIL import Image
from testing_utils import contents

from sapa_mm.tools.errors import ToolError
from sapa_mm.tools.prepare_camvid import copy, list_pairs, main

NAMES = {'train': 'training', 'val': 'validation', 'test': 'test'}


def make_published(root, size=(4, 6)):
    """Two pairs to train on and one each to validate and test, of different colours."""
    rng = np.random.default_rng(0)
    for name, number in (('train', 2), ('val', 1), ('test', 1)):
        for folder in (name, f'{name}annot'):
            (root / folder).mkdir(parents=True)
        for i in range(number):
            file = f'0001TP_{name}_{i}.png'
            image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            Image.fromarray(image).save(root / name / file)
            labels = rng.integers(0, 12, size).astype(np.uint8)
            Image.fromarray(labels).save(root / f'{name}annot' / file)
    return root


def test_every_pair_goes_to_its_split(tmp_path, capsys):
    source = make_published(tmp_path / 'CamVid')
    (source / 'train.txt').write_text('not an image')
    (source / 'train' / 'Thumbs.db').write_text('nor is this')
    out = tmp_path / 'data' / 'camvid'
    main([str(source), '--out', str(out)])
    expected = {}
    for name, split in NAMES.items():
        for kind, folder in (('images', name), ('annotations', f'{name}annot')):
            for path in (source / folder).glob('*.png'):
                expected[f'{kind}/{split}/{path.name}'] = path.read_bytes()
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*.*')}
    assert found == expected
    assert len(found) == 8
    assert [p.name for p in out.parent.iterdir()] == ['camvid']
    said = capsys.readouterr().out
    assert f'{out}: 2 images for training (published are 367)' in said


def alone(source):
    (source / 'trainannot' / '0001TP_train_0.png').unlink()


def damaged(source):
    path = source / 'testannot' / '0001TP_test_0.png'
    path.write_bytes(path.read_bytes()[:40])


def cut_off(source):
    path = source / 'train' / '0001TP_train_0.png'
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:60])  # its size can be read, its pixels cannot


def all_classes(source):
    Image.fromarray(np.full((4, 6), 31, np.uint8)).save(source / 'valannot' / '0001TP_val_0.png')


def colours(source):
    image = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    image.save(source / 'valannot' / '0001TP_val_0.png')


def other_size(source):
    Image.fromarray(np.zeros((6, 4), np.uint8)).save(source / 'valannot' / '0001TP_val_0.png')


def no_folder(source):
    (source / 'testannot').rename(source / 'testlabels')


def empty(source):
    (source / 'val' / '0001TP_val_0.png').unlink()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (alone, r'one name, got .*train/0001TP_train_0\.png alone'),
        (damaged, r'expected two images, got .*testannot/0001TP_test_0\.png'),
        (cut_off, r'expected two images, got .*train/0001TP_train_0\.png'),
        (all_classes, r'0 to 11 in .*valannot/0001TP_val_0\.png, got 31'),
        (colours, r'one channel .*, got 3 channels'),
        (other_size, r'labels of \(4, 6\) pixels for .*, got \(6, 4\)'),
        (no_folder, r"expected a folder of images, got no folder '.*testannot'"),
        (empty, r"expected images \(.*\) in '.*val', got none"),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_wrong_data_are_named_and_nothing_is_written(tmp_path, capsys, spoil, message):
    source = make_published(tmp_path / 'CamVid')
    spoil(source)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as raised:
        main([str(source), '--out', str(tmp_path / 'data')])
    assert raised.value.code == 2
    assert re.search(message, ' '.join(capsys.readouterr().err.split()))
    assert contents(tmp_path) == before


def test_what_is_there_stays(tmp_path, capsys):
    source = make_published(tmp_path / 'CamVid')
    (tmp_path / 'data').mkdir()
    with pytest.raises(SystemExit):
        main([str(source), '--out', str(tmp_path / 'data')])
    assert 'expected a folder that is not there' in ' '.join(capsys.readouterr().err.split())
    assert not list((tmp_path / 'data').iterdir())


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    source = make_published(tmp_path / 'CamVid')
    pairs = list_pairs(source)
    # A file that vanishes after it was checked.
    (source / 'testannot' / '0001TP_test_0.png').unlink()
    with pytest.raises(OSError, match='0001TP_test_0'):
        copy(pairs, tmp_path / 'data' / 'camvid')
    assert not list((tmp_path / 'data').iterdir())
    with pytest.raises(ToolError, match='got none'):
        list_pairs(source)
