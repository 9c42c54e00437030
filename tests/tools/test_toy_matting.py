"""The toy foregrounds with exact alpha, as Composition-1k has them."""

import itertools

import cv2
import numpy as np
import pytest
from scipy import ndimage
from testing_utils import contents

from sapa_mm.tools.toy_dataset import command as toy
from sapa_mm.tools.toy_dataset import scenes
from sapa_mm.tools.toy_dataset.matte_shapes import ribbons, sample_coverage
from sapa_mm.tools.toy_dataset.mattes import (
    KINDS,
    PHOTOS,
    draw_background,
    draw_matte,
    draw_trimap,
)

SIZE = (96, 131)
OPTIONS = ['--size', '96', '131', '--layouts', 'matting', '--num-val', '5']
# The least share of pixels that are neither opaque nor transparent.
PARTIAL = {'hair': 0.05, 'net': 0.04, 'leaf': 0.04, 'horse': 0.04, 'smoke': 0.12}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp('toy') / 'set'
    assert toy.main(['--out', str(out), '--num-train', '6', *OPTIONS]) == 0
    return out


def read(path):
    """A file as it is, colours in the order RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return image[..., ::-1] if image.ndim == 3 else image


def test_layout(dataset):
    train = [f'{kind}_{k:05d}' for k, kind in enumerate((*KINDS, KINDS[0]), 1)]
    test = [f'{kind}_{k:05d}' for k, kind in enumerate(KINDS, 1)]
    merged = [f'{name}_{k}' for name in test for k in range(2)]
    expected = [
        f'matting/Training_set/{part}/{name}.png' for part in ('fg', 'alpha') for name in train
    ]
    expected += [f'matting/Training_set/bg/photo_{k:05d}.png' for k in range(1, 7)]
    expected += [f'matting/Test_set/alpha/{name}.png' for name in test]
    expected += [
        f'matting/Test_set/{part}/{name}.png' for part in ('merged', 'trimaps') for name in merged
    ]
    assert sorted(contents(dataset)) == sorted([*expected, 'toy_dataset.json'])
    for path in expected:
        image = read(dataset / path)
        flat = '/alpha/' in path or '/trimaps/' in path
        assert (image.dtype, image.shape) == (np.uint8, SIZE if flat else (*SIZE, 3))


def test_merged_images_are_composites_of_the_files_alpha(dataset):
    folder = dataset / 'matting/Test_set'
    for k, kind in enumerate(KINDS):
        rng = np.random.default_rng([0, 7, k])
        matte = draw_matte(rng, kind, SIZE, 'val')
        alpha = read(folder / f'alpha/{kind}_{k + 1:05d}.png')
        np.testing.assert_array_equal(alpha, matte.alpha)
        weight = alpha.astype(int)[..., None]
        for place in range(2):
            background = draw_background(rng, SIZE, 'val')
            total = weight * matte.foreground + (255 - weight) * background
            name = f'{kind}_{k + 1:05d}_{place}.png'
            # This is total / 255, rounded in whole numbers.
            np.testing.assert_array_equal(read(folder / 'merged' / name), (2 * total + 255) // 510)
            np.testing.assert_array_equal(read(folder / 'trimaps' / name), draw_trimap(rng, alpha))


def test_training_has_colours_where_alpha_is_0(dataset):
    folder = dataset / 'matting/Training_set'
    for k, kind in enumerate(KINDS):
        matte = draw_matte(np.random.default_rng([0, 6, k]), kind, SIZE, 'train')
        for part, image in (('fg', matte.foreground), ('alpha', matte.alpha)):
            np.testing.assert_array_equal(read(folder / f'{part}/{kind}_{k + 1:05d}.png'), image)
        assert matte.foreground[matte.alpha == 0].std(0).min() > 1


def disk(radius):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return y**2 + x**2 <= radius**2


@pytest.mark.parametrize('kind', KINDS)
def test_trimap(kind):
    found = set()
    for k, shape in itertools.product(range(4), [(96, 131), (160, 160), (64, 200), (64, 64)]):
        rng = np.random.default_rng([5, k])
        alpha = draw_matte(rng, kind, shape, 'train').alpha
        trimap = draw_trimap(rng, alpha)
        values = {0, 128} if kind == 'smoke' else {0, 128, 255}
        assert set(np.unique(trimap)) == values
        assert (trimap[(alpha > 0) & (alpha < 255)] == 128).all()
        if shape != (160, 160):
            continue
        fits = [
            radius
            for radius in range(1, 8)
            if all(
                np.array_equal(
                    trimap == value,
                    ndimage.binary_erosion(alpha == value, disk(radius), border_value=1),
                )
                for value in values - {128}
            )
        ]
        assert len(fits) == 1 and 2 <= fits[0] <= 5
        found.update(fits)
    assert len(found) > 1


def test_trimap_keeps_a_known_pixel_of_what_is_small():
    alpha = np.zeros((40, 40), np.uint8)
    alpha[10:13, 10:13] = 255
    alpha[30, 30] = 100
    for seed in range(8):
        trimap = draw_trimap(np.random.default_rng(seed), alpha)
        np.testing.assert_array_equal(np.argwhere(trimap == 255), [(11, 11)])
        assert trimap[30, 30] == 128 and trimap[0, 0] == 0


@pytest.mark.parametrize('kind', KINDS)
def test_shares_of_partial_alpha(kind):
    for k in range(6):
        alpha = draw_matte(np.random.default_rng([8, k]), kind, (160, 160), 'train').alpha
        partial = (alpha > 0) & (alpha < 255)
        assert partial.mean() > PARTIAL[kind]
        assert (alpha == 0).mean() > 0.1
        if kind == 'smoke':
            assert 100 < alpha.max() < 255
            # It is smooth and has many values.
            assert len(np.unique(alpha)) > 80
        else:
            assert (alpha == 255).mean() > 0.02
            # Coverages are multiples of 1 / 64.
            steps = alpha / 255 * 64
            assert np.abs(steps - np.round(steps)).max() <= 32 / 255


def test_hairs_are_thinner_than_a_pixel():
    for k in range(4):
        alpha = draw_matte(np.random.default_rng([3, k]), 'hair', (160, 160), 'train').alpha
        # A pixel on a hair that is wider than one would be opaque.
        ridge = (alpha == ndimage.maximum_filter(alpha, 3)) & (alpha > 0)
        assert (ridge & (alpha < 128)).sum() > 15
    # The thinnest line covers three tenths of the pixels in its way, whatever its place.
    for x in (9.0, 9.31, 9.5, 9.84):
        line = ribbons(np.array([[(x, -1.0), (x, 41.0)]]), np.array(0.3))
        covered = sample_coverage([(True, line)], (40, 20))
        np.testing.assert_allclose(covered.sum(1), 0.3, atol=0.08)
        assert covered.max() < 0.4


@pytest.mark.parametrize('slope', [0.0, 0.21, -0.73, 1.9])
def test_coverage_of_a_straight_edge(slope):
    """Against the exact area below the line: the mean over x of clip(y(x) - top, 0, 1)."""
    height, width = 137, 33  # more than two bands of rows
    middle = 66.37
    x = (np.arange(width * 1000) + 0.5) / 1000
    line = middle + slope * (x - width / 2)
    top = np.arange(height)[:, None]
    exact = np.clip(line - top, 0, 1).reshape(height, width, 1000).mean(2)
    corners = [(-50, -200), (width + 50, -200), (width + 50, 0), (-50, 0)]
    polygon = np.array(corners, float)
    polygon[2:, 1] = middle + slope * (polygon[2:, 0] - width / 2)
    for points in (polygon, polygon[::-1]):
        found = sample_coverage([(True, points)], (height, width))
        assert np.abs(found - exact).max() <= 1 / 16 + 1e-9
        partial = (exact > 0) & (exact < 1)
        assert abs((found - exact)[partial].mean()) < (0.005 if slope else 1 / 16)


def test_areas_of_thin_ribbons():
    rng = np.random.default_rng(0)
    for width in (0.3, 0.7, 2.0):
        angle = rng.uniform(0, 2 * np.pi, 40)
        along = np.stack([np.cos(angle), np.sin(angle)], 1)
        middle = np.array([40.0, 40.0]) + rng.uniform(0, 1, (40, 2))
        areas = [
            sample_coverage(
                [(True, ribbons(np.stack([m - 30 * d, m, m + 30 * d])[None], np.array(width)))],
                (80, 81),
            ).sum()
            for m, d in zip(middle, along, strict=True)
        ]
        assert np.mean(areas) == pytest.approx(60 * width, rel=0.01)


def square(left, top, side):
    return np.array(
        [(left, top), (left + side, top), (left + side, top + side), (left, top + side)], float
    )


def test_layers_are_drawn_in_order():
    # Where polygons of both directions overlap, there is no hole, and nothing counts twice.
    both = [(True, square(1, 1, 4)), (True, square(3, 3, 4)[::-1])]
    expected = np.zeros((9, 8))
    expected[1:5, 1:5] = expected[3:7, 3:7] = 1
    np.testing.assert_array_equal(sample_coverage(both, (9, 8)), expected)
    stacked = [(True, np.stack([square(1, 1, 4), square(3, 3, 4)[::-1]]))]
    np.testing.assert_array_equal(sample_coverage(stacked, (9, 8)), expected)
    # A cut takes away what is there, a later addition is whole.
    layers = [*both, (False, square(-2, -2, 5.5)), (True, square(0, 0, 2))]
    expected[:3, :3], expected[3, :3], expected[:3, 3] = 0, expected[3, :3] / 2, expected[:3, 3] / 2
    expected[3, 3] = 0.75
    expected[:2, :2] = 1
    np.testing.assert_array_equal(sample_coverage(layers, (9, 8)), expected)


def test_photographs_of_the_test_are_not_in_the_training(monkeypatch):
    used = []
    load = scenes.load_photo

    def note(name):
        used.append(name)
        return load(name)

    monkeypatch.setattr(scenes, 'load_photo', note)
    seen = {}
    for split, photos in PHOTOS.items():
        rng = np.random.default_rng(0)
        for kind in KINDS * 4:
            draw_matte(rng, kind, (64, 64), split)
        textures = set(used)
        used.clear()
        for _ in range(40):
            draw_background(rng, (64, 64), split)
        assert textures == {name for name, _ in photos.textures}
        assert set(used) == set(photos.backgrounds)
        seen[split] = textures, set(used)
        used.clear()
    for first, second in itertools.combinations((*seen['train'], *seen['val']), 2):
        assert not first & second


def test_backgrounds_are_sharp():
    for split in PHOTOS:
        rng = np.random.default_rng(1)
        images = [draw_background(rng, (160, 160), split).astype(float) for _ in range(12)]
        steps = [np.abs(np.diff(image, axis=1)).mean() for image in images]
        assert np.median(steps) > 4


def test_seeds(dataset, tmp_path):
    """Equal seeds give equal files, more images keep the earlier ones, other seeds differ."""
    for name, options in (
        ('more', ['--num-train', '7']),
        ('other', ['--num-train', '6', '--seed', '1']),
    ):
        assert toy.main(['--out', str(tmp_path / name), *OPTIONS, *options]) == 0
    first = contents(dataset / 'matting')
    assert first.items() < contents(tmp_path / 'more/matting').items()
    other = contents(tmp_path / 'other/matting')
    assert first.keys() == other.keys()
    assert not any(first[name] == other[name] for name in first)


def test_summary(tmp_path, capsys):
    out = tmp_path / 'set'
    options = ['--num-train', '3', '--num-val', '2', '--size', '64', '--layouts', 'matting']
    assert toy.main(['--out', str(out), *options]) == 0
    printed = ' '.join(capsys.readouterr().out.split())
    assert (
        '3 training foregrounds and as many backgrounds, 4 test images of 2 more, 64x64' in printed
    )
    paths = [*(out / 'matting').glob('*/alpha/*.png')]
    partial = [((alpha > 0) & (alpha < 255)).mean() for alpha in map(read, paths)]
    assert f'{100 * np.mean(partial):.1f} % are neither opaque nor transparent' in printed
    assert f"mmengine, matting: data_root='{out / 'matting'}/'" in printed
