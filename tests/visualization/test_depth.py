import math

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from sapa_mm.visualization import (
    compare_edges,
    depth_range,
    depth_to_rgb,
    depths_to_rgb,
    draw_depths,
    relative_error,
)

UNKNOWN = (128, 128, 128)
FOUND, MISSED, FALSE, NOTHING = (0, 0, 0), (0, 114, 178), (230, 120, 0), (255, 255, 255)
IMAGE = np.full((30, 48, 3), (70, 180, 90), np.uint8)


def colour(share, name='magma_r'):
    """The colour at a share of the scale, by matplotlib's own table of 256."""
    table = (255 * np.array(colormaps[name].colors)).astype(np.uint8)
    return tuple(map(int, table[min(max(int(256 * share), 0), 255)]))


def colours(path):
    pixels = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
    return {tuple(map(int, colour)) for colour in np.unique(pixels, axis=0)}


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16, np.int64])
def test_colours_at_known_depths(dtype):
    depth = np.array([[1, 2, 3], [4, 5, 9]], dtype)
    got = depth_to_rgb(depth, (1, 5))
    assert got.shape == (2, 3, 3) and got.dtype == np.uint8
    expected = [[colour((d - 1) / 4) for d in row] for row in ((1, 2, 3), (4, 5, 5))]
    assert np.array_equal(got, expected)
    # Near is light.
    assert got[0, 0].astype(int).sum() > 600 and got[1, 1].astype(int).sum() < 20
    # So is depth outside the limits, by the nearer one.
    assert np.array_equal(depth_to_rgb(depth, [3, 4])[0, :2], [colour(0)] * 2)


def test_unknown_depth_is_gray_as_no_known_is():
    depth = np.array([[0, -1, np.nan, np.inf], [-np.inf, 1, 2, 3]], np.float32)
    before = depth.copy()
    got = depth_to_rgb(depth[:, ::-1].T, (1, 3))
    assert np.array_equal(depth, before, equal_nan=True)
    gray = (got == UNKNOWN).all(-1)
    assert np.array_equal(gray, [[True, False], [True, False], [True, False], [True, True]])
    scale = depth_to_rgb(np.linspace(0.01, 10, 5000)[None], (0, 10))[0].astype(int)
    assert np.abs(scale - 128).max(-1).min() > 25


def test_the_range_of_known_depth():
    maps = [np.array([[0, np.nan, 3.0]]), np.array([[2.5, np.inf, -4]], np.float32)]
    assert depth_range(maps) == (2.5, 3.0)
    assert depth_range(maps[:1]) == (3.0, 4.0)
    assert depth_range([np.zeros((2, 2))]) == depth_range([]) == (0.0, 1.0)


def test_the_relative_error():
    depth = np.array([[1.5, 2, 0, np.nan, 3]], np.float32)
    truth = np.array([[1, 4, 2, 2, 0]], np.float32)
    got = relative_error(depth, truth)
    assert got.dtype == np.float64
    assert np.array_equal(got, [[0.5, 0.5, np.nan, np.nan, np.nan]], equal_nan=True)


def test_edges_found_missed_and_false():
    truth, edges = np.zeros((2, 9, 20), bool)
    truth[:, 4] = True
    edges[:4, 6] = True  # two pixels aside
    edges[4:, 15] = True
    got = compare_edges(edges, truth)
    expected = np.full((9, 20, 3), NOTHING, np.uint8)
    # A true edge is found up to two pixels from a predicted one: straight aside, for rows 0 to 3.
    expected[4:, 4] = MISSED
    expected[4:, 15] = FALSE
    expected[:4, 6] = FOUND
    assert np.array_equal(got, expected)
    edges[:4, 6], edges[:4, 7] = False, True  # three pixels aside
    assert (compare_edges(edges, truth)[:4, 7] == FALSE).all()
    assert (compare_edges(edges, truth)[:, 4] == MISSED).all()


def test_edges_where_depth_is_not_known_do_not_count():
    truth, edges = np.zeros((2, 6, 20), bool)
    truth[:, 3] = edges[:, 4] = edges[:, 12] = True
    known = np.ones((6, 20), bool)
    known[:, 3] = known[:, 12] = False
    got = compare_edges(edges, truth, known)
    assert (got[~known] == UNKNOWN).all()
    assert (got[:, 4] == FALSE).all()  # the true edge beside it is not known
    assert (np.delete(got, [3, 4, 12], axis=1) == NOTHING).all()


def test_nothing_to_find():
    none, some = np.zeros((5, 7), bool), np.eye(5, 7, dtype=bool)
    assert (compare_edges(none, none) == NOTHING).all()
    assert (compare_edges(some, none)[some] == FALSE).all()
    assert (compare_edges(none, some)[some] == MISSED).all()
    wide = compare_edges(some, some, width=3)
    assert (wide == FOUND).all(-1).sum() > 2 * some.sum()


def step(left, right):
    depth = np.full(IMAGE.shape[:2], left, np.float32)
    depth[:, 24:] = right
    return depth


def edges_of(depth):
    """Where depth grows by more than half a metre to the right."""
    return np.pad(np.diff(depth) > 0.5, ((0, 0), (0, 1)))


def test_one_scale_for_all_depth_and_one_for_all_errors(tmp_path):
    path = tmp_path / 'depths.png'
    truths = [step(1.0, 2.0), step(3.0, 5.0)]
    truths[0][:10, :10] = 0
    predictions = {'a': [step(1.1, 2.5), step(3.3, 5.25)], 'b': [step(4.0, 4.0), step(1.5, 7.0)]}
    draw_depths(path, [IMAGE, IMAGE], predictions, truths, find_edges=edges_of)
    seen = colours(path)
    for depth in (1.0, 1.1, 2.0, 2.5, 3.0, 3.3, 4.0, 5.0, 5.25, 7.0):
        assert colour((depth - 1) / 4) in seen, depth
    for error in (0.1, 0.25, 0.05, 3.0, 1.0, 0.4):
        assert colour(error / 0.5 + 1e-6, 'viridis') in seen, error
    assert {UNKNOWN, FOUND, MISSED, NOTHING, tuple(map(int, IMAGE[0, 0]))} <= seen
    picture = Image.open(path)
    # Four columns; for each image three rows of its height, the titles, and the scales.
    width, row = 4 * 2.4, 2.4 * 30 / 48
    assert picture.size == pytest.approx((150 * width, 150 * (6 * row + 0.3 + 0.75)), abs=1)


def test_limits_and_the_largest_error_can_be_given(tmp_path):
    truth, prediction = step(2.0, 4.0), step(3.0, 4.4)
    draw_depths(tmp_path / 'a.png', [IMAGE], {'a': [prediction]}, [truth])
    draw_depths(
        tmp_path / 'b.png', [IMAGE], {'a': [prediction]}, [truth], limits=(0, 10), max_error=2
    )
    pictures = [np.asarray(Image.open(tmp_path / f'{name}.png').convert('RGB')) for name in 'ab']
    # The third column of the first row, on its left and on its right, then of the second.
    width = pictures[0].shape[1]
    row, column = round(150 * (0.3 + 0.75)), round(width * 5 / 6)
    below = row + round(150 * 2.4 * 30 / 48)
    found = [
        tuple(map(int, picture[y, column + x]))
        for picture in pictures
        for y in (row, below)
        for x in (-90, 90)
    ]
    assert found[:2] == [colour(0.5), colour(1.0)]
    assert found[2:4] == [colour(1.0, 'viridis'), colour(0.2, 'viridis')]
    assert found[4:6] == [colour(0.3), colour(0.44)]
    assert found[6:] == [colour(0.25, 'viridis'), colour(0.05, 'viridis')]


@pytest.mark.parametrize('truths', [None, [step(1.0, 2.0)]])
def test_without_truth_or_predictions(tmp_path, truths):
    path = tmp_path / 'depths.png'
    predictions = {'a': [step(3.0, 6.0)]} if truths is None else {}
    draw_depths(path, [IMAGE], predictions, truths)
    assert {colour(0), colour(1)} <= colours(path)  # their own range
    size = (150 * 2 * 2.4, 150 * (2.4 * 30 / 48 + 0.3 + 0.75))
    assert Image.open(path).size == pytest.approx(size, abs=1)


def test_nothing_known(tmp_path):
    path = tmp_path / 'depths.png'
    nothing = np.zeros(IMAGE.shape[:2], np.float32)
    draw_depths(path, [IMAGE], {'a': [nothing * np.nan]}, [nothing], find_edges=edges_of)
    assert UNKNOWN in colours(path)
    # Without a known truth the scale is that of the predictions.
    draw_depths(path, [IMAGE], {'a': [step(3.0, 6.0)]}, [nothing])
    assert {colour(0), colour(1), UNKNOWN} <= colours(path)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(images=[]), 'images: expected at least one, got none'),
        (dict(truths=[]), r'truth: expected depth of sizes \[\(30, 48\)\], got \[\]'),
        (
            dict(predictions={'a': [np.ones((1, 30, 48))]}),
            r'a: expected depth of sizes .*got \[\(1, 30, 48\)\]',
        ),
        (dict(truths=None), 'find_edges: expected truths'),
        (dict(limits=(5, 1)), r'limits: expected two depths.*\(5, 1\)'),
        (dict(limits=(1, math.inf)), 'limits: '),
        (dict(limits=(1, math.nan)), 'limits: '),
        (dict(limits=(-1, 3)), 'limits: '),
        (dict(limits=(1,)), 'limits: '),
        (dict(max_error=0), 'max_error: expected a positive number, got 0'),
        (dict(predictions={'truth': [step(1, 2)]}), "predictions: .*other titles.*'truth'"),
    ],
)
def test_bad_input_leaves_no_file(tmp_path, options, message):
    good = dict(images=[IMAGE], predictions={'a': [step(1, 2)]}, truths=[step(1, 2)])
    arguments = good | dict(find_edges=edges_of) | options
    with pytest.raises(ValueError, match=message):
        draw_depths(tmp_path / 'a.png', **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('shape', [(1, 4, 6), (24,)])
def test_what_is_no_map(shape):
    with pytest.raises(ValueError, match=r'depth: expected a map \(H, W\), got the shape'):
        depth_to_rgb(np.ones(shape), (0, 1))


@pytest.mark.parametrize('other', [(5, 8), (6, 7), (5, 7, 1)])
def test_maps_of_different_sizes(other):
    truth = np.ones((5, 7))
    with pytest.raises(ValueError, match=r'depth: expected the size of the truth, \(5, 7\)'):
        relative_error(np.ones(other), truth)
    with pytest.raises(ValueError, match=r'edges: expected the size \(5, 7\)'):
        compare_edges(np.ones(other, bool), truth > 0)
    with pytest.raises(ValueError, match=r'known: expected the size \(5, 7\)'):
        compare_edges(truth > 0, truth > 0, np.ones(other, bool))


def test_panels_refuse_maps_of_another_size():
    with pytest.raises(ValueError, match=r'a: expected depth of sizes \[\(30, 48\)\]'):
        depths_to_rgb(IMAGE, {'a': np.ones((30, 47))}, (0, 1))
    with pytest.raises(ValueError, match='limits: '):
        depths_to_rgb(IMAGE, {'a': step(1, 2)}, (2, 2))
