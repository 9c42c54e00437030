"""Trimaps, crops and composites have the values that can be computed by hand."""

from collections import Counter
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate, worker_init_fn
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from torch.utils.data import DataLoader

from sapa_mm.matting import Composite, CropUnknown, LoadComposition, MakeTrimap, PackMatting

TRAINING = [
    'LoadComposition',
    'AddForeground',
    'ResizeSquare',
    'RandomAffineForeground',
    'MakeTrimap',
    'CropUnknown',
    'JitterForeground',
    'Composite',
    'PackMatting',
]


def seed(value):
    np.random.seed(value)  # noqa: NPY002  the transforms draw from it


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def apply(transform, results, value=0):
    seed(value)
    return transform(dict(results))


# Trimaps


def trimap_of(alpha, diameters, value=0):
    return apply(MakeTrimap(diameters), dict(alpha=np.asarray(alpha, np.uint8)), value)['trimap']


def test_diameter_1_leaves_what_is_known():
    alpha = [[0, 1, 127, 254, 255], [255, 255, 0, 0, 128]]
    expected = [[0, 128, 128, 128, 255], [255, 255, 0, 0, 128]]
    got = trimap_of(alpha, (1, 1))
    assert got.dtype == np.uint8
    assert got.tolist() == expected


def test_diameter_3_erodes_by_the_four_neighbours():
    """OpenCV's ellipse of three pixels is a cross; the border of the image stays known."""
    alpha = np.zeros((5, 7), np.uint8)
    alpha[:, 4:] = 255
    alpha[2, 1] = 9
    assert trimap_of(alpha, (3, 3)).tolist() == [
        [0, 0, 0, 128, 128, 255, 255],
        [0, 128, 0, 128, 128, 255, 255],
        [128, 128, 128, 128, 128, 255, 255],
        [0, 128, 0, 128, 128, 255, 255],
        [0, 0, 0, 128, 128, 255, 255],
    ]


def width_of_unknown(value, diameters=(1, 29)):
    """How far the unknown goes to the left, and to the right, of an edge between columns."""
    alpha = np.zeros((3, 80), np.uint8)
    alpha[:, 40:] = 255
    (unknown,) = np.nonzero(trimap_of(alpha, diameters, value)[1] == 128)
    return 40 - min(unknown, default=40), max(unknown, default=39) - 39


def test_diameters_are_drawn_one_by_one_from_the_whole_range():
    drawn = [width_of_unknown(value) for value in range(400)]
    # Odd diameters 1 to 29 reach (d - 1) / 2; even ones reach a pixel farther to one side.
    for side in zip(*drawn, strict=True):
        assert set(side) == set(range(15))
    assert len(set(drawn)) > 100
    assert width_of_unknown(7) == width_of_unknown(7)
    assert {width_of_unknown(value, (5, 5)) for value in range(9)} == {(2, 2)}


def test_a_trimap_may_have_no_unknown():
    assert (trimap_of(np.zeros((5, 3)), (9, 9)) == 0).all()
    assert (trimap_of(np.full((5, 3), 255), (9, 9)) == 255).all()


# Crops


def scene(height, width, bg_size, unknown=()):
    """The pixels' colours are their rows and columns, and so are those of the background."""

    def code(h, w):
        rows, columns = np.mgrid[:h, :w].astype(np.uint8)
        return np.stack([rows, columns, rows * 0 + 7], -1)

    trimap = np.zeros((height, width), np.uint8)
    for pixel in unknown:
        trimap[pixel] = 128
    fg = code(height, width)
    return dict(fg=fg, alpha=fg[..., 1].copy(), trimap=trimap, bg=code(*bg_size))


@pytest.mark.parametrize(
    'pixel, corner',
    [
        ((20, 30), (16, 26)),  # it is pixel (4, 4) of the crop
        ((2, 3), (0, 0)),
        ((39, 49), (32, 42)),
        ((36, 46), (32, 42)),
        ((35, 45), (31, 41)),
    ],
)
def test_the_crop_is_centred_on_the_unknown_pixel(pixel, corner):
    results = scene(40, 50, (8, 8), [pixel])
    got = apply(CropUnknown(size=8), results)
    for key in ('fg', 'alpha', 'trimap'):
        window = tuple(slice(start, start + 8) for start in corner)
        np.testing.assert_array_equal(got[key], results[key][window])
    assert got['trimap'][pixel[0] - corner[0], pixel[1] - corner[1]] == 128
    np.testing.assert_array_equal(got['bg'], results['bg'])


def test_every_unknown_pixel_is_drawn_alike():
    results = scene(41, 53, (9, 9), [(10, 10), (10, 40), (30, 25)])
    seed(0)
    counts = Counter()
    for _ in range(300):
        counts[tuple(CropUnknown(size=5)(dict(results))['fg'][2, 2, :2].tolist())] += 1
    assert set(counts) == {(10, 10), (10, 40), (30, 25)}
    assert all(abs(n - 100) < 41 for n in counts.values())


def corners(results, key, size=5, rounds=300):
    seed(0)
    transform = CropUnknown(size=size)
    return Counter(tuple(transform(dict(results))[key][0, 0, :2].tolist()) for _ in range(rounds))


def test_without_an_unknown_pixel_any_crop_comes():
    assert set(corners(scene(7, 6, (5, 5)), 'fg')) == {(y, x) for y in range(3) for x in range(2)}


def test_the_background_is_cropped_at_random():
    results = scene(9, 9, (6, 8), [(4, 4)])
    assert set(corners(results, 'bg')) == {(y, x) for y in range(2) for x in range(4)}
    got = apply(CropUnknown(size=5), results)
    top, left = got['bg'][0, 0, :2]
    np.testing.assert_array_equal(got['bg'], results['bg'][top : top + 5, left : left + 5])


@pytest.mark.parametrize('size', [(4, 4), (2, 3), (3, 2), (1, 4), (4, 9), (30, 3)])
@pytest.mark.parametrize('bg_size', [(4, 4), (1, 1), (9, 3), (40, 30)])
def test_small_images_are_enlarged_first(size, bg_size):
    results = scene(*size, bg_size, [(0, 0)])
    results['trimap'][-1, -1] = 255
    for value in range(5):
        got = apply(CropUnknown(size=16), results, value)
        assert {key: got[key].shape for key in results} == dict(
            fg=(16, 16, 3), alpha=(16, 16), trimap=(16, 16), bg=(16, 16, 3)
        )
        # Nearest pixels: alpha and trimap agree with the foreground, and no value is new.
        np.testing.assert_array_equal(got['alpha'], got['fg'][..., 1])
        assert (got['trimap'] == 128).any()
        unknown = (got['fg'][..., :2] == 0).all(-1)
        np.testing.assert_array_equal(got['trimap'] == 128, unknown)


def test_an_image_is_enlarged_as_a_whole_until_its_shorter_side_fits():
    results = scene(4, 6, (2, 2), [(0, 0)])
    results['bg'][:] = 50
    got = apply(CropUnknown(size=8), results)
    expected = results['fg'].repeat(2, axis=0).repeat(2, axis=1)[:, :8]
    np.testing.assert_array_equal(got['fg'], expected)
    assert got['bg'].shape == (8, 8, 3) and (got['bg'] == 50).all()


def test_a_background_that_is_large_enough_keeps_its_pixels():
    results = scene(3, 3, (8, 8), [(0, 0)])
    np.testing.assert_array_equal(apply(CropUnknown(size=8), results)['bg'], results['bg'])


# Composites


def test_a_composite_is_not_rounded():
    fg = np.array([[[200, 100, 0], [200, 100, 0], [200, 100, 0]]], np.uint8)
    bg = np.array([[[0, 50, 255], [0, 50, 255], [0, 50, 255]]], np.uint8)
    alpha = np.array([[0, 51, 255]], np.uint8)
    got = Composite()(dict(fg=fg, bg=bg, alpha=alpha))
    assert all(got[key].dtype == np.float32 for key in ('img', 'fg', 'bg', 'alpha'))
    np.testing.assert_allclose(got['img'], [[[0, 50, 255], [40, 60, 204], [200, 100, 0]]])
    np.testing.assert_allclose(got['alpha'], [[0, 0.2, 1]])
    np.testing.assert_array_equal(got['fg'], fg)
    np.testing.assert_array_equal(got['bg'], bg)


def test_a_composite_of_noise():
    fg, bg, alpha = noise(23, 17, 3), noise(23, 17, 3, seed=1), noise(23, 17, seed=2)
    got = Composite()(dict(fg=fg, bg=bg, alpha=alpha))['img']
    a = alpha[..., None] / 255
    np.testing.assert_allclose(got, a * fg + (1 - a) * bg, rtol=0, atol=1e-4)
    for value, expected in ((0, bg), (255, fg)):
        same = Composite()(dict(fg=fg, bg=bg, alpha=np.full_like(alpha, value)))['img']
        np.testing.assert_array_equal(same, expected)


def test_a_composite_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match=r'got 2 x 3 of fg, 3 x 2 of bg, 2 x 3 of alpha'):
        Composite()(dict(fg=noise(2, 3, 3), bg=noise(3, 2, 3), alpha=noise(2, 3)))


# Files and samples


@pytest.fixture
def data(tmp_path):
    """Two foregrounds of 40 x 56 and 31 x 33 pixels, three backgrounds, and two merges of one."""
    train, test = tmp_path / 'Training_set', tmp_path / 'Test_set'
    for folder in ('fg', 'alpha', 'bg'):
        (train / folder).mkdir(parents=True)
    for folder in ('merged', 'alpha', 'trimaps'):
        (test / folder).mkdir(parents=True)
    for k, size in enumerate([(40, 56), (31, 33)]):
        alpha = np.zeros(size, np.uint8)
        cv2.circle(alpha, (size[1] // 2, size[0] // 2), 10, 255, -1)
        alpha = cv2.GaussianBlur(alpha, (9, 9), 0)
        cv2.imwrite(str(train / 'alpha' / f'f{k}.png'), alpha)
        cv2.imwrite(str(train / 'fg' / f'f{k}.png'), noise(*size, 3, seed=k))
    for k, size in enumerate([(20, 90), (64, 64), (33, 70)]):
        cv2.imwrite(str(train / 'bg' / f'b{k}.png'), noise(*size, 3, seed=10 + k))
    cv2.imwrite(str(test / 'alpha' / 'n.png'), noise(15, 22, seed=20))
    for k in range(2):
        cv2.imwrite(str(test / 'merged' / f'n_{k}.png'), noise(15, 22, 3, seed=30 + k))
        trimap = np.random.default_rng(k).choice([0, 127, 255], (15, 22)).astype(np.uint8)
        cv2.imwrite(str(test / 'trimaps' / f'n_{k}.png'), trimap)
    return tmp_path


def build(root, size=32, **options):
    steps = [dict(type=name) for name in TRAINING]
    steps[TRAINING.index('CropUnknown')]['size'] = size
    config = dict(type='CompositionDataset', data_root=str(root), pipeline=steps)
    return DATASETS.build(config | options)


def build_test(root):
    steps = [dict(type='LoadComposition'), dict(type='PackMatting')]
    return build(root, test_mode=True, pipeline=steps)


def test_a_training_sample(data):
    # The configs have mmseg's scope, whose registries find what is registered with mmengine.
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = build(data, size=24)
    for index in (0, 1):
        packed = dataset[index]
        image, sample = packed['inputs'], packed['data_samples']
        assert type(sample) is BaseDataElement
        assert image.shape == (3, 24, 24) and image.dtype == torch.float32
        shapes = {key: (tuple(item.data.shape), item.data.dtype) for key, item in sample.items()}
        assert shapes == dict(
            trimap=((1, 24, 24), torch.uint8),
            gt_alpha=((1, 24, 24), torch.float32),
            gt_fg=((3, 24, 24), torch.float32),
            gt_bg=((3, 24, 24), torch.float32),
        )
        assert all(isinstance(item, PixelData) for item in sample.values())
        assert sample.img_path == str(data / 'Training_set' / 'fg' / f'f{index}.png')
        assert sample.ori_shape == ((40, 56), (31, 33))[index] and sample.img_shape == (24, 24)
        alpha, fg, bg = (getattr(sample, f'gt_{key}').data for key in ('alpha', 'fg', 'bg'))
        assert 0 <= alpha.min() and alpha.max() <= 1 and fg.max() > 100 and bg.max() > 100
        assert image.is_contiguous() and fg.is_contiguous()
        torch.testing.assert_close(image, alpha * fg + (1 - alpha) * bg, rtol=0, atol=1e-3)
        trimap = sample.trimap.data
        assert ((alpha == 1) | (trimap != 255)).all() and ((alpha == 0) | (trimap != 0)).all()
        assert set(trimap.unique().tolist()) <= {0, 128, 255}
    batch = pseudo_collate([dataset[0], dataset[1]])
    assert len(batch['inputs']) == len(batch['data_samples']) == 2


def test_samples_are_those_of_the_seed(data):
    dataset = build(data)

    def draw(value):
        seed(value)
        return torch.stack([dataset[index % 2]['inputs'] for index in range(6)])

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
def test_every_worker_draws_its_own(data):
    dataset = build(data)

    def load(value):
        loader = DataLoader(
            dataset,
            num_workers=2,
            collate_fn=pseudo_collate,
            worker_init_fn=partial(worker_init_fn, num_workers=2, rank=0, seed=value),
            sampler=[0] * 4,
        )
        return [batch['inputs'][0] for batch in loader]

    first = load(5)
    # The workers take turns; each has a seed of its own.
    assert len({image.numpy().tobytes() for image in first}) == 4
    assert all(map(torch.equal, first, load(5)))
    # The second worker's seed is one more than the first one's.
    assert torch.equal(first[1], load(6)[0])


def test_a_test_sample(data):
    dataset = build_test(data)
    test = data / 'Test_set'
    for index in (0, 1):
        packed = dataset[index]
        image, sample = packed['inputs'], packed['data_samples']
        assert image.dtype == torch.uint8
        assert sample.img_path == str(test / 'merged' / f'n_{index}.png')
        assert sample.ori_shape == sample.img_shape == (15, 22)
        assert sorted(sample.keys()) == ['gt_alpha', 'trimap']
        expected = noise(15, 22, 3, seed=30 + index)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
        np.testing.assert_array_equal(sample.gt_alpha.data[0].numpy(), noise(15, 22, seed=20))
        trimap = np.random.default_rng(index).choice([0, 128, 255], (15, 22))
        np.testing.assert_array_equal(sample.trimap.data[0].numpy(), trimap)
        assert sample.gt_alpha.data.dtype == sample.trimap.data.dtype == torch.uint8
        assert torch.equal(sample.to_dict()['gt_alpha']['data'], sample.gt_alpha.data)


def test_an_image_without_truth(data):
    test = data / 'Test_set'
    paths = dict(img_path=test / 'merged' / 'n_0.png', trimap_path=test / 'trimaps' / 'n_0.png')
    pipeline = Compose([dict(type='LoadComposition'), dict(type='PackMatting')])
    sample = pipeline({key: str(path) for key, path in paths.items()})['data_samples']
    assert list(sample.keys()) == ['trimap']


@pytest.mark.parametrize('folder, file', [('alpha', 'n.png'), ('trimaps', 'n_1.png')])
def test_test_files_of_another_size_are_named(data, folder, file):
    cv2.imwrite(str(data / 'Test_set' / folder / file), np.full((22, 15), 128, np.uint8))
    with pytest.raises(ValueError, match=rf"15 x 22 of img '.*n_1\.png'.* 22 x 15 of .*{file}'"):
        build_test(data)[1]


def test_a_foreground_of_another_size_than_its_alpha_is_named(data):
    cv2.imwrite(str(data / 'Training_set' / 'alpha' / 'f1.png'), noise(33, 31))
    with pytest.raises(ValueError, match=r"31 x 33 of fg '.*fg.f1\.png', 33 x 31 of alpha '.*f1"):
        LoadComposition()(build(data, pipeline=[])[1])


def test_a_trimap_without_unknown_pixels_is_named(data):
    cv2.imwrite(str(data / 'Test_set' / 'trimaps' / 'n_1.png'), np.zeros((15, 22), np.uint8))
    dataset = build_test(data)
    with pytest.raises(ValueError, match=r"got none in '.*n_1\.png'"):
        dataset[1]


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(type='MakeTrimap', diameters=(0, 3)), 'diameters.*0'),
        (dict(type='MakeTrimap', diameters=(5, 3)), 'diameters.*5'),
        (dict(type='MakeTrimap', diameters=(3,)), 'diameters.*3'),
        (dict(type='CropUnknown', size=0), 'size.*0'),
    ],
)
def test_bad_arguments_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)


def test_the_defaults_are_those_of_the_paper():
    built = [LoadComposition(), MakeTrimap(), CropUnknown(), Composite(), PackMatting()]
    assert [repr(transform) for transform in built] == [
        'LoadComposition()',
        'MakeTrimap(diameters=(1, 29))',
        'CropUnknown(size=512)',
        'Composite()',
        'PackMatting()',
    ]
