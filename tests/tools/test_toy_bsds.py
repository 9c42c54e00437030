"""The toy scenes with the segments of several annotators, as BSDS500 has them."""

import re

import cv2
import numpy as np
import pytest
from scipy import ndimage
from scipy.io import loadmat
from testing_utils import contents

from sapa_mm.segmentation import BSDS500Dataset, LoadBSDSAnnotations
from sapa_mm.tools.toy_dataset import command as toy
from sapa_mm.tools.toy_dataset.scenes import render_scene

SIZE = (96, 131)
OPTIONS = ['--size', '96', '131', '--layouts', 'bsds', '--num-val', '2']


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp('toy') / 'set'
    assert toy.main(['--out', str(out), '--num-train', '6', *OPTIONS]) == 0
    return out


def annotations_of(dataset, split, k):
    """All annotators' maps of an image, by SciPy alone."""
    table = loadmat(dataset / f'bsds/groundTruth/{split}/{k:06d}.mat')['groundTruth']
    return [table[0, person]['Segmentation'][0, 0] for person in range(table.shape[1])]


def test_layout(dataset):
    stems = ['test/000001', 'test/000002', *(f'train/00000{k}' for k in range(1, 7))]
    expected = [f'bsds/groundTruth/{stem}.mat' for stem in stems]
    expected += [f'bsds/images/{stem}.jpg' for stem in stems]
    assert list(contents(dataset)) == [*expected, 'toy_dataset.json']


def test_files_have_the_published_structure(dataset):
    table = loadmat(dataset / 'bsds/groundTruth/train/000001.mat')['groundTruth']
    assert table.shape[0] == 1 and 4 <= table.shape[1] <= 6
    for cell in table[0]:
        assert cell.shape == (1, 1)
        assert cell.dtype.names == ('Segmentation', 'Boundaries')
        segments, boundaries = cell[0, 0]
        assert (segments.dtype, segments.shape) == (np.uint16, SIZE)
        assert (boundaries.dtype, boundaries.shape) == (np.uint8, SIZE)
        padded = np.pad(segments.astype(int), ((0, 1), (0, 1)), mode='edge')
        differs = (padded[1:, :-1] != segments) | (padded[:-1, 1:] != segments)
        np.testing.assert_array_equal(boundaries, differs)


def test_segments_are_connected_and_numbered_from_one(dataset):
    for k in range(1, 7):
        for segments in annotations_of(dataset, 'train', k):
            numbers = np.unique(segments)
            np.testing.assert_array_equal(numbers, np.arange(1, len(numbers) + 1))
            assert all(ndimage.label(segments == number)[1] == 1 for number in numbers)


def test_the_first_annotator_has_every_object_and_others_fewer(dataset):
    coarser = 0
    for split, stream in (('train', 4), ('test', 5)):
        for k in range(6 if split == 'train' else 2):
            scene = render_scene(np.random.default_rng([0, stream, k]), SIZE)
            maps = annotations_of(dataset, split, k + 1)
            assert 4 <= len(maps) <= 6
            for _, mask in scene.instances:
                inside, outside = np.unique(maps[0][mask]), np.unique(maps[0][~mask])
                assert not set(inside) & set(outside)
            for segments in maps[1:]:
                # A segment of the first lies within one of every other.
                pairs = np.unique(np.stack([maps[0], segments]).reshape(2, -1), axis=1)
                assert pairs.shape[1] == maps[0].max()
                coarser += segments.max() < maps[0].max()
            image = cv2.imread(str(dataset / f'bsds/images/{split}/{k + 1:06d}.jpg'))[..., ::-1]
            assert np.abs(image.astype(float) - scene.image).mean() < 4
    assert coarser >= 4


def test_the_data_set_loads_the_layout(dataset):
    for split, count in (('train', 6), ('test', 2)):
        data = BSDS500Dataset(
            data_root=str(dataset / 'bsds'),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'groundTruth/{split}'),
            pipeline=[dict(type='LoadImageFromFile'), LoadBSDSAnnotations('all')],
        )
        assert len(data) == count
        for k, sample in enumerate(data, 1):
            assert sample['img'].shape[:2] == SIZE
            expected = np.stack(annotations_of(dataset, split, k)).astype(int) - 1
            np.testing.assert_array_equal(sample['annotations'], expected)


def test_seeds(dataset, tmp_path):
    """Equal seeds give equal files, more images keep the earlier ones, other seeds differ."""
    for name, options in (
        ('more', ['--num-train', '7']),
        ('other', ['--num-train', '6', '--seed', '1']),
    ):
        assert toy.main(['--out', str(tmp_path / name), *OPTIONS, *options]) == 0
    first = contents(dataset / 'bsds')
    assert first.items() < contents(tmp_path / 'more/bsds').items()
    other = contents(tmp_path / 'other/bsds')
    assert not any(first[name] == other[name] for name in first)


def test_summary(tmp_path, capsys):
    out = tmp_path / 'toy'
    options = ['--num-train', '2', '--num-val', '1', '--size', '64', '--layouts', 'bsds']
    assert toy.main(['--out', str(out), *options]) == 0
    text = ' '.join(capsys.readouterr().out.split())
    maps = [m for k in (1, 2) for m in annotations_of(out, 'train', k)]
    maps += annotations_of(out, 'test', 1)
    counts = [int(m.max()) for m in maps]
    assert re.search(
        f'2 training and 1 test images of 64x64 pixels with {len(maps)} annotations of '
        f'{min(counts)} to {max(counts)} segments',
        text,
    )
    assert f"data_root='{out / 'bsds'}/'" in text
    assert 'ADE20K' not in text
