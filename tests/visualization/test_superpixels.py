import numpy as np
import pytest
from PIL import Image

from sapa_mm.segmentation import achievable_segmentation_accuracy
from sapa_mm.visualization import (
    draw_superpixel_curves,
    draw_superpixels,
    find_leakage,
    mark_superpixels,
)

RED = (255, 0, 0)
YELLOW = (255, 255, 0)
GRAY = (70, 80, 90)


def blocks(rows, cols, side=6):
    """Square superpixels in a grid."""
    return np.arange(rows * cols).reshape(rows, cols).repeat(side, axis=0).repeat(side, axis=1)


def has_boundary(superpixels):
    """Where a pixel has a neighbour of another number above, below, left or right."""
    padded = np.pad(superpixels, 1, mode='edge')
    shifted = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.any([other != superpixels for other in shifted], axis=0)


@pytest.mark.parametrize(
    'superpixels',
    [
        blocks(3, 4),
        # 0 is a superpixel like the others, and every one has its boundary.
        (blocks(3, 4) + 1) % 2,
        blocks(3, 4)[:, ::-1].astype(np.int32),
        np.random.default_rng(0).integers(0, 9, (9, 12)).repeat(2, axis=0).repeat(2, axis=1),
    ],
)
def test_only_boundaries_are_marked(superpixels):
    image = np.random.default_rng(1).integers(0, 250, (18, 24, 3)).astype(np.uint8)
    before = image.copy()
    marked = mark_superpixels(image, superpixels)
    assert marked.dtype == np.uint8
    assert marked.shape == (18, 24, 3)
    assert np.array_equal(image, before)
    changed = (marked != image).any(axis=2)
    assert (marked[changed] == YELLOW).all()
    assert not changed[~has_boundary(superpixels)].any()
    # At least one of two neighbours of different superpixels is marked.
    for axis in (0, 1):
        maps, marks = np.moveaxis(superpixels, axis, 0), np.moveaxis(changed, axis, 0)
        assert (marks[:-1] | marks[1:])[maps[:-1] != maps[1:]].all()


def test_a_single_superpixel_leaves_the_image():
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    for number in (0, 3):
        assert np.array_equal(mark_superpixels(image, np.full((5, 7), number)), image)


@pytest.mark.parametrize('shape', [(5, 8), (7, 5), (5,), (5, 7, 1)])
def test_mark_refuses_maps_of_another_size(shape):
    with pytest.raises(ValueError, match=r'superpixels.*\(5, 7\)'):
        mark_superpixels(np.zeros((5, 7, 3), np.uint8), np.zeros(shape, int))


def yellow_share(picture):
    """Share of the pixels that are yellow, or nearly."""
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    return ((red > 200) & (green > 200) & (blue < 60)).mean()


def test_lines_of_an_enlarged_image_are_finer_than_its_pixels():
    image = np.full((24, 24, 3), GRAY, np.uint8)
    plain = mark_superpixels(image, blocks(2, 2, 12))
    large = mark_superpixels(image, blocks(2, 2, 12), scale=5)
    assert large.shape == (120, 120, 3)
    assert yellow_share(large) == pytest.approx(yellow_share(plain) / 5, rel=0.1)
    assert (large[2::5, 2::5] == image).all()  # the pixels' centres
    with pytest.raises(ValueError, match='scale'):
        mark_superpixels(image, blocks(2, 2, 12), scale=0)


@pytest.mark.parametrize(('count', 'sides'), [(1, {4: 3, 8: 6, 16: 12}), (3, {16: 6})])
def test_a_row_an_image_and_a_column_a_level(tmp_path, count, sides):
    path = tmp_path / 'superpixels.png'
    images = [np.full((24, 24, 3), np.array(GRAY) + 40 * i, np.uint8) for i in range(count)]
    # The coarser they are, the fewer boundaries there are.
    levels = {stride: blocks(24 // n, 24 // n, n) for stride, n in sides.items()}
    assert draw_superpixels(path, images, [levels] * count) is None
    picture = np.asarray(Image.open(path).convert('RGB'))
    with Image.open(path) as opened:
        assert opened.format == 'PNG'
    shape = (len(sides) + 1) / count
    assert picture.shape[1] / picture.shape[0] == pytest.approx(shape, rel=0.3)
    for image in images:
        assert (picture == image[0, 0]).all(axis=2).any()
    shares = [yellow_share(part) for part in np.array_split(picture, len(sides) + 1, axis=1)]
    assert shares[0] == 0
    assert shares[1:] == sorted(shares[1:], reverse=True)
    assert shares[-1] > 0.002
    rows = np.array_split(picture, count, axis=0)
    for row, image in zip(rows, images, strict=True):
        assert yellow_share(row) > 0.002
        assert (row == image[0, 0]).all(axis=2).mean() > 0.2


IMAGE = np.zeros((8, 8, 3), np.uint8)
LEVELS = {16: np.zeros((8, 8), int), 32: np.zeros((8, 8), int)}


@pytest.mark.parametrize(
    ('images', 'superpixels', 'message'),
    [
        ([IMAGE], [LEVELS, LEVELS], r'(?s)superpixels.*(1.*2|2.*1)'),
        ([IMAGE, IMAGE], [LEVELS], r'(?s)superpixels.*(1.*2|2.*1)'),
        ([IMAGE, IMAGE], [LEVELS, {16: LEVELS[16]}], r'(?s)superpixels.*32'),
        ([IMAGE, IMAGE], [LEVELS, {8: LEVELS[16], 32: LEVELS[32]}], r'(?s)superpixels.*16.*8'),
        ([IMAGE], [{16: LEVELS[16], 32: np.zeros((8, 9), int)}], r'(?s)\(8, 9\)'),
        ([IMAGE, np.zeros((4, 8, 3), np.uint8)], [LEVELS, LEVELS], r'(?s)\(4, 8\)'),
    ],
)
def test_bad_input_leaves_no_file(tmp_path, images, superpixels, message):
    path = tmp_path / 'out.png'
    with pytest.raises(ValueError, match=message):
        draw_superpixels(path, images, superpixels)
    assert not path.exists()


def test_leakage_counted_by_hand():
    superpixels = np.array([[0, 0, 0, 7], [0, 0, 7, 7], [4, 4, 4, 4]])
    segments = np.array([[1, 1, 900, 900], [1, 1, 2, 900], [5, 3, 3, 5]])
    # Superpixel 0 is of segment 1, 7 of 900, and 4 of 3, the lesser of two that are as many.
    expected = np.array([[0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 1]], bool)
    got = find_leakage(superpixels, segments)
    assert got.dtype == bool
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(find_leakage(superpixels.T, segments.T), expected.T)


@pytest.mark.parametrize('seed', range(3))
def test_leakage_is_what_accuracy_lacks(seed):
    generator = np.random.default_rng(seed)
    superpixels = blocks(3, 4)
    segments = generator.integers(0, 400, (6, 8)).repeat(3, axis=0).repeat(3, axis=1)
    share = find_leakage(superpixels, segments.astype(np.uint16)).mean()
    assert 0 < share < 1
    accuracy = achievable_segmentation_accuracy(superpixels, segments, ignore_index=-1)
    assert 1 - share == pytest.approx(accuracy)


def test_leakage_is_red_and_boundaries_lie_over_it():
    image = np.full((18, 24, 3), GRAY, np.uint8)
    superpixels, segments = blocks(3, 4), np.zeros((18, 24), int)
    segments[7:11, 8:11] = 1  # within superpixel 5
    plain = mark_superpixels(image, superpixels)
    marked = mark_superpixels(image, superpixels, segments=segments)
    changed = (marked != plain).any(axis=2)
    assert (marked[changed] == RED).all()
    np.testing.assert_array_equal(changed, (segments == 1) & (plain == GRAY).all(axis=2))
    assert changed.sum() > 6
    assert (image == GRAY).all()
    large = mark_superpixels(image, superpixels, 3, segments)
    np.testing.assert_array_equal((large[1::3, 1::3] == RED).all(axis=2), segments == 1)
    with pytest.raises(ValueError, match=r'segments.*\(18, 24\).*\(18, 23\)'):
        mark_superpixels(image, superpixels, segments=segments[:, 1:])


def test_titled_levels_with_leakage(tmp_path):
    path = tmp_path / 'superpixels.png'
    image = np.full((24, 24, 3), GRAY, np.uint8)
    levels = {'4 superpixels': blocks(2, 2, 12), '16 superpixels': blocks(4, 4, 6)}
    # A quarter of each of the 4 leaks, and nothing of the 16.
    segments = (blocks(4, 4, 6) % 2) & (blocks(4, 4, 6) // 4 % 2)
    draw_superpixels(path, [image], [levels], [segments])
    picture = np.asarray(Image.open(path).convert('RGB'))
    red = (picture == RED).all(axis=2)
    parts = [part.mean() for part in np.array_split(red, 3, axis=1)]
    assert parts[0] == parts[2] == 0
    assert 0.1 < parts[1] < 0.25
    with pytest.raises(ValueError, match='segments: expected 1, got 2'):
        draw_superpixels(path, [image], [levels], [segments] * 2)


def points(*rows):
    return [dict(zip(('count', 'ASA', 'BR', 'BR-SEAL'), row, strict=True)) for row in rows]


def test_curves_are_drawn_by_their_order_along_the_axis(tmp_path):
    """Points in another order give the same picture, and other values another one."""
    curve = points((60, 0.88, 0.5, 0.4), (200, 0.93, 0.6, 0.5), (500, 0.95, 0.8, 0.7))

    def draw(**curves):
        draw_superpixel_curves(tmp_path / 'curve.png', curves)
        return np.asarray(Image.open(tmp_path / 'curve.png').convert('RGB'))

    first = draw(SLIC=curve)
    assert first.shape == (540, 1800, 3)
    np.testing.assert_array_equal(draw(SLIC=curve[::-1]), first)
    panels = np.array_split(first, 3, axis=1)
    for key, place in (('ASA', 0), ('BR', 1), ('BR-SEAL', 2)):
        other = [dict(curve[0]), {**curve[1], key: curve[0][key]}, dict(curve[2])]
        changed = [
            (a != b).any()
            for a, b in zip(np.array_split(draw(SLIC=other), 3, axis=1), panels, strict=True)
        ]
        assert changed == [k == place for k in range(3)]
    both = draw(SLIC=curve, SSN=points((100, 0.9, 0.6, 0.5)))
    assert (both != first).any()


@pytest.mark.parametrize('curves', [{}, {'SLIC': []}, {'SSN': points((1, 1, 1, 1)), 'SLIC': []}])
def test_curves_without_points(tmp_path, curves):
    with pytest.raises(ValueError, match='curves: expected at least one, with points'):
        draw_superpixel_curves(tmp_path / 'curve.png', curves)
    assert not list(tmp_path.iterdir())
