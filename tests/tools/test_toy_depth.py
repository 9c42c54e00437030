"""The toy rooms' depth against the pinhole camera's formulas, and the real picture's."""

import functools
import re

import cv2
import numpy as np
import pytest
from testing_utils import contents

from sapa_mm.tools.toy_dataset import command as toy
from sapa_mm.tools.toy_dataset import depth_scenes

SHAPE = (99, 120)
SEEDS = range(30)


@functools.cache
def room(seed, shape=SHAPE):
    return depth_scenes.render_depth_scene(np.random.default_rng(seed), shape)


def objects_mask(scene):
    return np.any([mask for _, _, mask in scene.objects], axis=0)


def floor_depth(scene):
    """Focal length times the camera's height over the rows below the horizon, a column of them."""
    below = np.arange(SHAPE[0]) + 0.5 - scene.camera.center[1]
    with np.errstate(divide='ignore'):
        return np.where(below > 0, scene.camera.focal * scene.camera.height / below, np.inf)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp('toy') / 'set'
    sizes = ['--num-train', '3', '--num-val', '2', '--size', '96', '131']
    assert toy.main(['--out', str(out), *sizes, '--layouts', 'depth']) == 0
    return out


def test_the_lowest_row_is_the_floor_of_the_pinhole_camera():
    count = 0
    for seed in SEEDS:
        scene = room(seed)
        floor = floor_depth(scene)[-1]
        background = (scene.depth[-1] > 0) & ~objects_mask(scene)[-1]
        seen = scene.depth[-1][background]
        assert (seen <= floor * (1 + 1e-9)).all()
        count += np.isclose(seen, floor, rtol=1e-9).sum()
    assert count > 0.5 * len(SEEDS) * SHAPE[1]


def test_inverse_depth_varies_linearly_across_slanted_walls():
    slanted = 0
    for seed in SEEDS:
        scene = room(seed)
        known = (scene.depth[0] > 0) & ~objects_mask(scene)[0]
        columns = np.flatnonzero(known)
        slopes = np.diff(1 / scene.depth[0][columns]) / np.diff(columns)
        # The nearest wall is the largest of at most two lines, so that slopes grow, at one place.
        assert (np.diff(slopes) > -1e-9).all()
        kinks = np.flatnonzero(np.diff(slopes) > 1e-9)
        assert kinks.size <= 2
        assert np.ptp(kinks) <= 1 if kinks.size else True
        slanted += (np.abs(slopes) > 1e-4).mean() > 0.5
    assert slanted > 0.3 * len(SEEDS)


def test_every_pixel_has_the_depth_of_an_object_or_of_a_plane_and_none_between():
    judged = 0
    for seed in SEEDS:
        scene = room(seed)
        known, covered = scene.depth > 0, objects_mask(scene)
        for _, z, mask in scene.objects:
            assert set(scene.depth[mask & known]) <= {z}
        floor = floor_depth(scene)
        for column in range(SHAPE[1]):
            background = known[:, column] & ~covered[:, column]
            above = background & np.isinf(floor)
            if not above.any():
                continue
            (wall,) = set(scene.depth[above, column])
            expected = np.minimum(floor, wall)[background]
            np.testing.assert_allclose(scene.depth[background, column], expected, rtol=1e-9)
            judged += background.sum()
    assert judged > 0.5 * len(SEEDS) * SHAPE[0] * SHAPE[1]


def test_objects_stand_before_what_they_hide():
    for seed in SEEDS:
        scene = room(seed)
        depths = [z for _, z, _ in scene.objects]
        assert depths == sorted(depths, reverse=True)
        above = np.arange(SHAPE[0])[:, None] + 0.5 < scene.camera.center[1]
        background = above & (scene.depth > 0) & ~objects_mask(scene)
        walls = np.where(background, scene.depth, 0).max(0)
        for _, z, mask in scene.objects:
            columns = mask.any(0) & background.any(0)
            assert (walls[columns] > z).all()


def box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def whole_balls():
    """Focal length over depth, mask and scene of the balls that nothing hides or cuts off."""
    for seed in range(70):
        scene = room(seed)
        for k, (name, z, mask) in enumerate(scene.objects):
            if name != 'sports ball' or not mask.any():
                continue
            top, bottom, left, right = box(mask)
            nearer = [box(other) for _, _, other in scene.objects[k + 1 :] if other.any()]
            apart = all(
                b[0] > bottom + 9 or b[1] < top - 9 or b[2] > right + 9 or b[3] < left - 9
                for b in nearer
            )
            if apart and top > 0 and left > 0 and bottom < SHAPE[0] and right < SHAPE[1]:
                yield scene.camera.focal / z, mask, scene


def test_size_times_depth_is_the_class_of_the_object():
    found = []
    for pixels_a_metre, mask, scene in whole_balls():
        radius = depth_scenes.HEIGHTS['sports ball'] / 2 * pixels_a_metre
        # A ball is stretched by .88 to 1.12 in one direction.
        assert 0.83 < mask.sum() / (np.pi * radius**2) < 1.17
        foot = scene.camera.center[1] + scene.camera.height * pixels_a_metre
        assert box(mask)[1] == pytest.approx(foot, abs=0.12 * radius + 1)
        found.append((pixels_a_metre, np.sqrt(mask.sum())))
    distance, size = np.log(found).T
    assert len(found) >= 10
    assert np.ptp(distance) > np.log(2)
    assert np.polyfit(distance, size, 1)[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize('shape', [(64, 64), (67, 131), (160, 100)])
def test_known_depth_is_within_bounds_and_some_is_unknown(shape):
    for seed in range(12):
        scene = room(seed, shape)
        known = scene.depth > 0
        assert scene.image.shape == (*shape, 3)
        assert scene.depth.shape == shape
        assert 0.5 < scene.depth[known].min()
        assert scene.depth.max() < 10
        assert 0.01 < 1 - known.mean() < 0.2
        # One side has no depth at all.
        assert not known[:, 0].any() or not known[:, -1].any()


def test_a_mirror_has_no_depth():
    largest = 0
    for seed in SEEDS:
        unknown = (room(seed).depth == 0).astype(np.uint8)
        unknown[:, :8] = unknown[:, -8:] = 0
        _, _, stats, _ = cv2.connectedComponentsWithStats(unknown)
        largest += (stats[1:, cv2.CC_STAT_AREA] > 40).any()
    assert 0.3 * len(SEEDS) < largest < 0.9 * len(SEEDS)


def test_distance_is_seen_in_the_picture():
    """What is far is hazy: the further a kite, the paler are its colours."""
    contrasts = []
    for seed in SEEDS:
        scene = room(seed)
        for name, z, mask in scene.objects:
            if name == 'kite' and mask.sum() > 40:
                # Its wings are saturated red and yellow: blue is dark but for the haze.
                contrasts.append((z, np.ptp(scene.image[mask].astype(float), axis=1).mean()))
    assert len(contrasts) >= 8
    assert np.corrcoef(np.transpose(contrasts))[0, 1] < -0.7


def test_layout(dataset):
    files = sorted(str(path.relative_to(dataset)) for path in dataset.rglob('*.*'))
    stems = ['motorcycle/motorcycle_1', 'test/scene_00001', 'test/scene_00002']
    stems += [f'train/scene_0000{k}' for k in (1, 2, 3)]
    expected = [f'depth/annotations/{stem}.png' for stem in stems]
    expected += [f'depth/images/{stem}.jpg' for stem in stems]
    assert files == [*expected, 'toy_dataset.json']


def test_files_hold_the_scenes(dataset):
    for split, stream in (('train', 2), ('test', 3)):
        scene = depth_scenes.render_depth_scene(np.random.default_rng([0, stream, 1]), (96, 131))
        depth = cv2.imread(
            str(dataset / f'depth/annotations/{split}/scene_00002.png'), cv2.IMREAD_UNCHANGED
        )
        assert depth.dtype == np.uint16
        np.testing.assert_array_equal(depth == 0, scene.depth == 0)
        np.testing.assert_allclose(depth / 1000, scene.depth, rtol=0, atol=0.000501)
        image = cv2.imread(str(dataset / f'depth/images/{split}/scene_00002.jpg'))[..., ::-1]
        assert np.abs(image.astype(float) - scene.image).mean() < 4


def test_mmseg_loads_the_layout(dataset):
    from mmseg.datasets import NYUDataset

    for split, count, size in (('train', 3, (96, 131)), ('motorcycle', 1, (500, 741))):
        data = NYUDataset(
            data_root=str(dataset / 'depth'),
            data_prefix=dict(img_path=f'images/{split}', depth_map_path=f'annotations/{split}'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='mmseg.LoadDepthAnnotation', depth_rescale_factor=1e-3),
            ],
        )
        assert len(data) == count
        for sample in data:
            assert sample['gt_depth_map'].shape == sample['img'].shape[:2] == size
            assert sample['gt_depth_map'].max() < 10


def test_seeds(dataset, tmp_path):
    """Equal seeds give equal files, more images keep the earlier ones, other seeds differ."""
    sizes = ['--size', '96', '131', '--layouts', 'depth', '--num-val', '2']
    for name, options in (
        ('more', ['--num-train', '4']),
        ('other', ['--num-train', '3', '--seed', '1']),
    ):
        assert toy.main(['--out', str(tmp_path / name), *sizes, *options]) == 0
    first = contents(dataset / 'depth')
    assert first.items() < contents(tmp_path / 'more/depth').items()
    other = contents(tmp_path / 'other/depth')
    same = {name for name in first if first[name] == other[name]}
    assert same == {name for name in first if 'motorcycle' in name}


def test_other_layouts_do_not_change(tmp_path):
    small = dict(num_train=2, num_val=1, size=(64, 72))
    toy.make_dataset(tmp_path / 'default', toy.Options(**small))
    toy.make_dataset(tmp_path / 'all', toy.Options(**small, layouts=toy.LAYOUTS))
    default, everything = contents(tmp_path / 'default'), contents(tmp_path / 'all')
    assert not any(name.startswith('depth/') for name in default)
    for name in set(default) - {toy.MARKER}:
        assert default[name] == everything[name], name
    rest = set(everything) - set(default)
    assert all(name.startswith(('depth/', 'bsds/', 'matting/')) for name in rest)
    assert len(rest) == 25


def test_summary_names_the_range_and_the_folder(tmp_path, capsys):
    out = tmp_path / 'toy'
    options = ['--num-train', '2', '--num-val', '1', '--size', '64', '--layouts', 'depth']
    assert toy.main(['--out', str(out), *options]) == 0
    text = ' '.join(capsys.readouterr().out.split())
    assert '2 training and 1 test images of 64x64 pixels with depth' in text
    depths = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in sorted((out / 'depth/annotations').glob('t*/*.png'))
    ]
    values = np.stack(depths) / 1000
    low, high, unknown = map(
        float, re.search(r'from ([\d.]+) to ([\d.]+) m, ([\d.]+) %', text).groups()
    )
    assert low == pytest.approx(values[values > 0].min(), abs=0.006)
    assert high == pytest.approx(values.max(), abs=0.006)
    assert unknown == pytest.approx(100 * (values == 0).mean(), abs=0.051)
    assert f"data_root='{out / 'depth'}/'" in text
    assert 'ADE20K' not in text


def test_unknown_layouts_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"layouts must be some of \('ade', 'coco', 'depth', 'bsds', 'matting'\)"
    ):
        toy.Options(layouts=('depths',))
    with pytest.raises(SystemExit):
        toy.main(['--out', str(tmp_path / 'x'), '--layouts', 'depths'])
    assert not (tmp_path / 'x').exists()


def test_motorcycle(dataset):
    """193.001 mm times 994.978 pixels over disparity and 31.086 pixels, in millimetres."""
    depth = cv2.imread(
        str(dataset / 'depth/annotations/motorcycle/motorcycle_1.png'), cv2.IMREAD_UNCHANGED
    )
    assert (depth.dtype, depth.shape) == (np.uint16, (500, 741))
    # The disparities there are 49.99937, 8.790509 and 50.850796.
    assert [depth[250, 311], depth[100, 100], depth[400, 600]] == [2368, 4816, 2344]
    assert (depth == 0).sum() == 27226
    assert (depth[depth > 0].min(), depth.max()) == (2110, 5017)


def test_motorcycle_without_disparity_is_unknown(monkeypatch):
    disparity = np.array([[np.nan, np.inf, -np.inf, 0.0, 68.914]], np.float32)
    picture = np.zeros((1, 5, 3), np.uint8)
    monkeypatch.setattr(
        depth_scenes.skimage.data, 'stereo_motorcycle', lambda: (picture, picture, disparity)
    )
    _, depth = depth_scenes.motorcycle()
    expected = [0, 0, 0, 192.03175 / 31.086, 1.9203175]
    np.testing.assert_allclose(depth[0], expected, rtol=1e-5)
