"""Transforms of images with depth: exact values, alignment, bounds, and whole pipelines."""

import itertools
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, set_random_seed
from mmseg.datasets.transforms import LoadDepthAnnotation
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image

from sapa_mm.depth import BTSColorAugmentation, CropRegion, LoadDepthMap

REPO = Path(__file__).resolve().parents[2]
BASES = REPO / 'configs' / '_base_' / 'datasets'


def build(**config):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return TRANSFORMS.build(config)


def write_depth(path, depth):
    if path.suffix == '.tiff':
        Image.fromarray(depth.astype(np.float32)).save(path)
    else:
        cv2.imwrite(str(path), depth)
    return dict(
        img=np.zeros((*depth.shape[:2], 3), np.uint8),
        img_path='image.jpg',
        ori_shape=depth.shape[:2],
        depth_map_path=str(path),
        seg_fields=[],
    )


def coded_sample(height, width, seed=0):
    """An image whose channels hold row and column, and depth that says both, in no order."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)
    depth = (1 + rows * width + columns).astype(np.float32)
    return dict(
        img=image,
        gt_depth_map=depth,
        seg_fields=['gt_depth_map'],
        img_shape=(height, width),
        ori_shape=(height, width),
    )


def places(sample, width):
    """Rows and columns that image and depth say, which have to be equal."""
    image, depth = sample['img'].astype(int), sample['gt_depth_map']
    rows, columns = np.divmod(depth.astype(int) - 1, width)
    np.testing.assert_array_equal(image[..., 0], rows)
    np.testing.assert_array_equal(image[..., 1], columns)
    return rows, columns


# LoadDepthMap


@pytest.mark.parametrize(('factor', 'expected'), [(1e-3, 2.5), (1 / 5000, 0.5), (2, 5000.0)])
def test_files_of_whole_numbers_become_metres(tmp_path, factor, expected):
    depth = np.array([[0, 2500, 65535], [1, 500, 0]], np.uint16)
    sample = write_depth(tmp_path / 'depth.png', depth)
    found = LoadDepthMap(depth_rescale_factor=factor).transform(sample)['gt_depth_map']
    assert found.dtype == np.float32
    assert found[0, 1] == np.float32(expected)
    np.testing.assert_allclose(found, depth.astype(np.float64) * factor, rtol=1e-6)
    assert sample['seg_fields'] == ['gt_depth_map']


def test_integers_and_a_fraction(tmp_path):
    """mmseg's own raises with ``to_float32=False``, which here has no effect."""
    depth = np.full((2, 3), 1500, np.uint16)
    config = dict(depth_rescale_factor=1e-3, to_float32=False)
    with pytest.raises(TypeError):
        LoadDepthAnnotation(**config).transform(write_depth(tmp_path / 'depth.png', depth))
    found = LoadDepthMap(**config).transform(write_depth(tmp_path / 'depth.png', depth))
    np.testing.assert_allclose(found['gt_depth_map'], 1.5, rtol=1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, -0.25])
def test_what_is_no_depth(tmp_path, bad):
    depth = np.array([[1.5, bad, 0.0], [2.0, 3.0, bad]], np.float32)
    sample = write_depth(tmp_path / 'depth.tiff', depth)
    with pytest.raises(ValueError, match=r"got 2 pixels .* '.*depth\.tiff'; unknown='zero'"):
        LoadDepthMap(depth_rescale_factor=2.0).transform(dict(sample, seg_fields=[]))
    found = LoadDepthMap(depth_rescale_factor=2.0, unknown='zero').transform(sample)
    np.testing.assert_array_equal(found['gt_depth_map'], [[3.0, 0, 0], [4.0, 6.0, 0]])


def test_another_size_than_the_image(tmp_path):
    sample = write_depth(tmp_path / 'depth.png', np.ones((4, 6), np.uint16))
    sample['ori_shape'] = (6, 4)
    with pytest.raises(ValueError, match=r'a map of 6 x 4 pixels, .*image\.jpg.* got 4 x 6 in '):
        LoadDepthMap().transform(sample)


def test_a_map_of_three_channels(tmp_path):
    sample = write_depth(tmp_path / 'depth.png', np.ones((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match='got 4 x 6 x 3 in '):
        LoadDepthMap().transform(sample)


def test_the_map_behind_a_resize_keeps_the_size_of_the_file(tmp_path):
    cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((8, 10, 3), np.uint8))
    sample = write_depth(tmp_path / 'depth.png', np.full((8, 10), 1234, np.uint16))
    pipeline = Compose(
        [
            build(type='LoadImageFromFile'),
            build(type='Resize', scale=(21, 17), keep_ratio=False),
            build(type='LoadDepthMap'),
        ]
    )
    found = pipeline(
        dict(
            img_path=str(tmp_path / 'image.png'),
            depth_map_path=sample['depth_map_path'],
            seg_fields=[],
        )
    )
    assert found['img'].shape == (17, 21, 3)
    assert found['gt_depth_map'].shape == (8, 10)


def test_images_alone_pass():
    sample = dict(img=np.zeros((3, 4, 3), np.uint8))
    assert LoadDepthMap().transform(sample) is sample
    assert 'gt_depth_map' not in sample


def test_unknown_is_checked():
    with pytest.raises(ValueError, match=r"unknown.*'nan'"):
        LoadDepthMap(unknown='nan')


# CropRegion


def test_crop_is_exact():
    sample = CropRegion(rows=(2, 9), columns=(3, 5)).transform(coded_sample(9, 6))
    rows, columns = places(sample, 6)
    np.testing.assert_array_equal(rows[:, 0], np.arange(2, 9))
    np.testing.assert_array_equal(columns[0], [3, 4])
    assert sample['img_shape'] == (7, 2)
    assert sample['ori_shape'] == (9, 6)
    assert sample['img'].flags.c_contiguous


def test_crop_wants_the_depth_map_first():
    sample = coded_sample(9, 6)
    del sample['gt_depth_map']
    sample.update(depth_map_path='later.png', seg_fields=[])
    with pytest.raises(ValueError, match=r"expected LoadDepthMap before it, .*'later.png'"):
        CropRegion((2, 9), (3, 5)).transform(sample)


@pytest.mark.parametrize(('rows', 'columns'), [((0, 10), (0, 6)), ((0, 9), (1, 7))])
def test_crop_beyond_the_image(rows, columns):
    with pytest.raises(ValueError, match=r'within the image, got .* for 9 x 6 pixels'):
        CropRegion(rows, columns).transform(coded_sample(9, 6))


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(rows=(1, 2, 3), columns=(0, 2)), ValueError, 'rows: expected a first and an end'),
        (dict(rows=(0, 2), columns=(3, 3)), ValueError, r'columns\[1\]'),
        (dict(rows=(-1, 2), columns=(0, 3)), ValueError, r'rows\[0\]'),
        (dict(rows=(0.5, 2), columns=(0, 3)), TypeError, r'rows\[0\]'),
    ],
)
def test_crop_bounds_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        CropRegion(**options)


# mmseg's


def test_rotation_makes_no_new_depth():
    set_random_seed(0)
    sample = coded_sample(40, 50)
    before = set(np.unique(sample['gt_depth_map']))
    sample['gt_depth_map'][10:14, 10:14] = 0
    rotate = build(type='RandomRotate', prob=1.0, degree=(20, 20.1), pad_val=0, seg_pad_val=0)
    depth = rotate(sample)['gt_depth_map']
    assert set(np.unique(depth)) <= before | {0}
    assert (depth[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
    assert (depth == 0).sum() > 100
    assert (sample['img'][depth == 0].max(1) == 0).any()


def test_the_default_padding_of_rotation_is_a_depth_of_255_metres():
    set_random_seed(0)
    rotate = build(type='RandomRotate', prob=1.0, degree=(20, 20.1))
    assert (rotate(coded_sample(10, 12))['gt_depth_map'] == 255).any()


@pytest.mark.parametrize('direction', ['horizontal', 'vertical'])
def test_flip_keeps_image_and_depth_together(direction):
    sample = build(type='RandomFlip', prob=1.0, direction=direction)(coded_sample(7, 9))
    rows, columns = places(sample, 9)
    assert (rows[0, 0], columns[0, 0]) == ((0, 8) if direction == 'horizontal' else (6, 0))


def test_crop_at_random_keeps_image_and_depth_together():
    set_random_seed(0)
    corners = set()
    for _ in range(10):
        sample = build(type='RandomCrop', crop_size=(5, 6))(coded_sample(9, 12))
        rows, columns = places(sample, 12)
        assert rows.shape == (5, 6)
        corners.add((rows[0, 0], columns[0, 0]))
    assert len(corners) > 3


# BTSColorAugmentation


def fixed(monkeypatch, change, *factors):
    draws = iter(factors)
    monkeypatch.setattr(random, 'random', lambda: 0.0 if change else 0.999)
    monkeypatch.setattr(random, 'uniform', lambda low, high: next(draws))


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_colours_against_a_hand_computation(monkeypatch, dtype):
    fixed(monkeypatch, True, 1.1, 0.8, 0.9, 1.0, 1.05)
    image = np.array([[[0, 128, 255], [255, 64, 10]]], dtype)
    found = BTSColorAugmentation().transform(dict(img=image))['img']
    assert found.dtype == dtype
    # 255 b c (x / 255) ** 1.1 with b = .8 and c = .9, 1, 1.05
    expected = [[[0.0, 95.5818, 214.2], [183.6, 44.5907, 6.0762]]]
    if dtype == np.uint8:
        expected = np.round(expected)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_bright_colours_are_cut(monkeypatch):
    fixed(monkeypatch, True, 1.0, 1.25, 1.1, 1.1, 1.1)
    found = BTSColorAugmentation().transform(dict(img=np.full((1, 2, 3), 200, np.uint8)))['img']
    assert (found == 255).all()


@pytest.mark.parametrize('prob', [0.0, 0.5, 1.0])
def test_share_of_changed_images(prob):
    random.seed(0)
    transform = BTSColorAugmentation(prob=prob)
    image = np.full((2, 2, 3), 100, np.uint8)
    changed = sum((transform.transform(dict(img=image))['img'] != image).any() for _ in range(200))
    assert changed == 200 * prob or (prob == 0.5 and 75 < changed < 125)
    assert (image == 100).all()


def test_factors_are_within_bounds_and_fill_them():
    random.seed(0)
    transform = BTSColorAugmentation(1.0, (0.5, 0.6), (2.0, 3.0), (1.0, 1.5))
    _, gammas, factors = zip(*(transform.draw(3) for _ in range(300)), strict=True)
    factors = np.array(factors)
    assert 0.5 <= min(gammas) < 0.51 < 0.59 < max(gammas) <= 0.6
    assert 2.0 <= factors.min() < 2.2
    assert 4.0 < factors.max() <= 4.5
    # The three channels share a brightness and differ in their own factor.
    assert 1.0 < (factors.max(1) / factors.min(1)).max() <= 1.5


def test_depth_is_not_touched():
    sample = coded_sample(5, 6)
    before = sample['gt_depth_map'].copy()
    BTSColorAugmentation(prob=1.0).transform(sample)
    np.testing.assert_array_equal(sample['gt_depth_map'], before)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        (dict(prob=1.5), '^prob: expected 0 to 1, got 1.5'),
        (dict(gamma=(1.1, 0.9)), '^gamma: '),
        (dict(brightness=(0.0, 1.0)), '^brightness: '),
        (dict(channel=(1.0,)), '^channel: '),
    ],
)
def test_colour_options_are_checked(options, text):
    with pytest.raises(ValueError, match=text):
        BTSColorAugmentation(**options)


# Pipelines


def write_frames(root, size):
    """Frames of NYU's kind: the depth of a pixel is that of its red, 3 blocks a side."""
    generator = np.random.default_rng(0)
    for split in ('train', 'test'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for k in (1, 2):
            levels = generator.permutation(9).reshape(3, 3) + 1
            rows, columns = np.ogrid[: size[0], : size[1]]
            level = levels[rows * 3 // size[0], columns * 3 // size[1]]
            image = np.stack([np.zeros_like(level)] * 2 + [level * 20], axis=-1)
            # JPEG's half resolution of colours would blur the blocks' borders alone.
            cv2.imwrite(str(root / f'images/{split}/kitchen_{k}.jpg'), image.astype(np.uint8))
            depth = (level * 1000).astype(np.uint16)
            cv2.imwrite(str(root / f'annotations/{split}/kitchen_{k}.png'), depth)


@pytest.mark.parametrize(
    ('name', 'size', 'crop', 'test_size'),
    [
        ('nyu_bts_416x544', (480, 640), (416, 544), (480, 640)),
        ('nyu_dorn_257x353', (480, 640), (257, 353), (257, 353)),
        ('toy_depth_160x160', (160, 160), (160, 160), (160, 160)),
    ],
)
def test_pipelines(tmp_path, name, size, crop, test_size):
    write_frames(tmp_path, size)
    config = Config.fromfile(BASES / f'{name}.py')
    set_random_seed(0)
    for loader, expected in (('train_dataloader', crop), ('val_dataloader', test_size)):
        options = dict(config[loader].dataset, data_root=str(tmp_path))
        with DefaultScope.overwrite_default_scope('mmseg'):
            dataset = DATASETS.build(options)
        assert len(dataset) == 2
        for sample in (dataset[0], dataset[1], dataset[0]):
            image, data = sample['inputs'], sample['data_samples']
            depth = data.gt_depth_map.data
            assert image.shape == (3, *expected)
            assert depth.dtype == torch.float32
            test = loader == 'val_dataloader'
            assert depth.shape == (1, *(size if test else expected))
            metres = depth.double().unique()
            assert metres.numel() > 4
            torch.testing.assert_close(metres, metres.round(), rtol=1e-6, atol=0)
            assert data.ori_shape == size
            assert data.category_id == 6
            stem = Path(data.depth_map_path).stem
            assert stem == Path(data.img_path).stem
            assert stem in ('kitchen_1', 'kitchen_2')
            if depth.shape[1:] == image.shape[1:]:
                check_aligned(image, depth[0])


def check_aligned(image, depth):
    """Each level of red, up to one change of colours, has one depth, except at blocks' borders."""
    known = depth > 0
    inner = cv2.erode(known.numpy().astype(np.uint8), np.ones((9, 9))) > 0
    edges = cv2.morphologyEx(depth.numpy(), cv2.MORPH_GRADIENT, np.ones((9, 9))) > 0
    kept = torch.from_numpy(inner & ~edges)
    red = image[2][kept].float()
    order = [red[depth[kept] == level].mean() for level in depth[kept].unique()]
    spread = [red[depth[kept] == level].std() for level in depth[kept].unique()]
    assert kept.float().mean() > 0.5
    assert len(order) >= 4
    assert all(b > a + 8 for a, b in itertools.pairwise(order))
    assert max(spread) < 2


def test_data_that_a_loader_batches(tmp_path):
    """mmengine builds loader and sampler of the toy base, and the batch is the images' size."""
    write_frames(tmp_path, (160, 160))
    loader = Config.fromfile(BASES / 'toy_depth_160x160.py').train_dataloader
    loader.dataset.data_root = str(tmp_path)
    with DefaultScope.overwrite_default_scope('mmseg'):
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    assert len(batch['inputs']) == len(batch['data_samples']) == 8
    assert {tuple(image.shape) for image in batch['inputs']} == {(3, 160, 160)}


def test_a_file_that_is_no_depth_map(tmp_path):
    path = tmp_path / 'broken.png'
    path.write_bytes(b'no image')
    results = dict(img=np.zeros((4, 5, 3), np.uint8), depth_map_path=str(path), seg_fields=[])
    with pytest.raises(ValueError, match=r'depth_map_path: expected a depth map, got .*broken.png'):
        LoadDepthMap().transform(results)
