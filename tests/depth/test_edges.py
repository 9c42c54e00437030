"""The depth boundary error: edges of known places, and distances against loops."""

import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from scipy.ndimage import gaussian_filter1d

from sapa_mm.depth import DepthBoundaryError, boundary_errors, depth_edges

HEIGHT, WIDTH = 31, 64


def step(column, left=2.0, right=4.0):
    depth = np.full((HEIGHT, WIDTH), left)
    depth[:, column:] = right
    return depth


def blurred(column, sigma, **sides):
    return np.exp(gaussian_filter1d(np.log(step(column, **sides)), sigma, axis=1))


def columns_of(edges):
    return sorted(set(np.flatnonzero(edges.any(0)).tolist()))


def sample(pred, true):
    made = SegDataSample(metainfo=dict(img_path='scene_1.jpg'))
    made.pred_depth_map = PixelData(data=torch.tensor(pred, dtype=torch.float32)[None])
    made.gt_depth_map = PixelData(data=torch.tensor(true, dtype=torch.float32)[None])
    return made


def evaluate(*samples, **options):
    with DefaultScope.overwrite_default_scope('mmseg'):
        evaluator = Evaluator(METRICS.build(dict(type='DepthBoundaryError', **options)))
    evaluator.process(list(samples))
    return evaluator.evaluate(len(samples))


def both(acc, comp):
    return pytest.approx(dict(dbe_acc=acc, dbe_comp=comp), abs=1e-6)


# Edges


@pytest.mark.parametrize('sides', [(2.0, 4.0), (4.0, 2.0), (1.3, 1.9), (9.0, 1.0)])
@pytest.mark.parametrize('turned', [False, True])
def test_a_step_is_one_line_beside_the_jump(sides, turned):
    depth = step(30, *sides)
    edges = depth_edges(depth.T).T if turned else depth_edges(depth)
    assert edges.shape == depth.shape
    assert columns_of(edges) == [29]
    # There is none at the first two corners and the last one, where the image ends.
    assert edges.sum() == HEIGHT - 3
    assert edges[1 : HEIGHT - 2].any(1).all()


def test_least_ratio():
    for ratio, found in ((1.149, False), (1.151, True)):
        for left in (0.5, 1.0, 7.0):
            assert depth_edges(step(30, left, left * ratio)).any() == found
            assert depth_edges(step(30, left * ratio, left)).any() == found
            assert depth_edges(step(30, left, left * ratio).T).any() == found
    assert depth_edges(step(30, 1.0, 1.41), 1.4).any()
    assert not depth_edges(step(30, 1.0, 1.39), 1.4).any()


def test_the_jump_counts_as_a_ratio_and_not_in_metres():
    assert depth_edges(step(30, 0.5, 0.6)).any()
    assert not depth_edges(step(30, 8.0, 9.0)).any()


def test_what_is_blurred_has_its_edge_in_the_middle_if_it_jumps_higher():
    assert columns_of(depth_edges(blurred(30, 3.0, left=1.0, right=2.0))) == [29]
    assert not depth_edges(blurred(30, 3.0, left=1.0, right=1.2)).any()


def test_a_weak_part_counts_beside_a_strong_one():
    depth = step(30, 1.0, 1.12)
    assert not depth_edges(depth).any()
    depth[:12, 30:] = 1.3
    edges = depth_edges(depth)
    assert edges[1 : HEIGHT - 2, 29].all()


def test_planes_have_no_edge():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    slanted = 1 / (0.12 + 0.006 * columns)  # a wall from 8.3 to 2 m
    floor = 200.0 / (rows + 25.0)  # 4 % a pixel at the top
    assert not depth_edges(slanted).any()
    assert not depth_edges(floor).any()
    assert not depth_edges(np.minimum(slanted, floor)).any()


def test_a_circle_is_a_thin_closed_line():
    rows, columns = np.mgrid[:61, :61]
    inside = np.hypot(rows - 30, columns - 30) < 20
    edges = depth_edges(np.where(inside, 2.0, 5.0))
    found = np.hypot(*(np.argwhere(edges) + 0.5 - 30).T)
    assert np.abs(found - 20).max() < 1.2
    assert 100 < edges.sum() < 165


@pytest.mark.parametrize('unknown', [0.0, -1.0, np.nan, np.inf])
def test_unknown_depth_makes_no_edge(unknown):
    depth = np.full((HEIGHT, WIDTH), 3.0)
    depth[8:20, 20:40] = unknown
    depth[:, :4] = unknown
    assert not depth_edges(depth).any()
    # An edge goes on up to it.
    depth = step(30)
    depth[12:, :] = unknown
    edges = depth_edges(depth)
    assert edges[1:9, 29].all()
    assert not edges[11:].any()


def test_unknown_depth_between_does_not_join():
    depth = step(30)
    depth[:, 28:33] = 0
    assert not depth_edges(depth).any()


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 2), (3, 40)])
def test_small_maps(size):
    depth = np.where(np.arange(size[1]) < size[1] // 2, 1.0, 3.0)
    edges = depth_edges(np.broadcast_to(depth, size))
    assert edges.shape == size
    assert not edges.any()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r'^depth: expected a map \(H, W\), got \(1, 4, 5\)'):
        depth_edges(np.ones((1, 4, 5)))
    with pytest.raises(ValueError, match=r'^min_ratio: expected more than 1, got 1\.0'):
        depth_edges(np.ones((4, 5)), 1.0)
    with pytest.raises(TypeError, match='min_ratio'):
        DepthBoundaryError(min_ratio='1.2')
    with pytest.raises(ValueError, match='min_ratio'):
        DepthBoundaryError(min_ratio=0.9)
    with pytest.raises(ValueError, match='max_distance'):
        DepthBoundaryError(max_distance=0)


# Errors


def by_loops(pred, true, most):
    def nearest(place, places):
        return min((math.dist(place, other) for other in places), default=math.inf)

    predicted, real = np.argwhere(pred).tolist(), np.argwhere(true).tolist()
    close = [d for d in (nearest(place, real) for place in predicted) if d <= most]
    missing = [min(nearest(place, predicted), most) for place in real]
    return (sum(close) / len(close) if close else most), sum(missing) / len(missing)


@pytest.mark.parametrize('most', [2.0, 4.5, 10.0])
def test_errors_against_loops(most):
    generator = np.random.default_rng(0)
    for share in (0.01, 0.05, 0.3):
        pred, true = generator.random((2, 23, 31)) < share
        assert boundary_errors(pred, true, most) == pytest.approx(by_loops(pred, true, most))


def test_errors_without_edges():
    none, some = np.zeros((4, 30), bool), np.zeros((4, 30), bool)
    some[1, 2] = True
    assert boundary_errors(some, none) is None
    assert boundary_errors(none, some) == (10.0, 10.0)
    far = np.roll(some, 20, axis=1)
    assert boundary_errors(far, some) == (10.0, 10.0)


def test_the_largest_distance_still_counts():
    true, pred = np.zeros((2, 5, 30), bool)
    true[2, 3] = pred[2, 3] = pred[2, 13] = True
    assert boundary_errors(pred, true) == (5.0, 0.0)
    assert boundary_errors(np.roll(pred, 1, axis=1), true) == (1.0, 1.0)


# The metric


def test_a_step_that_is_three_pixels_off():
    assert evaluate(sample(step(33), step(30))) == both(3, 3)
    assert evaluate(sample(step(27).T, step(30).T)) == both(3, 3)


def test_the_right_place_is_what_counts():
    """Neither scale nor the heights on the two sides matter."""
    assert evaluate(sample(3 * step(30), step(30))) == both(0, 0)
    assert evaluate(sample(step(30, 5.0, 1.0), step(30))) == both(0, 0)


def test_a_blurred_edge_stays_or_gets_lost():
    true = step(30, 1.0, 1.25)
    assert evaluate(sample(blurred(30, 1.0, left=1.0, right=1.25), true)) == both(0, 0)
    assert evaluate(sample(blurred(30, 6.0, left=1.0, right=1.25), true)) == both(10, 10)


def test_a_missing_edge():
    assert evaluate(sample(np.full((HEIGHT, WIDTH), 3.0), step(30))) == both(10, 10)
    assert evaluate(sample(np.full((HEIGHT, WIDTH), 3.0), step(30)), max_distance=6) == both(6, 6)


def test_one_of_two_edges_is_missing():
    true = step(15)
    true[:, 45:] = 9.0
    assert evaluate(sample(step(15), true)) == both(0, 5)


def test_an_edge_too_many():
    """Far from true edges it does not count, near them it does in accuracy."""
    far, near = step(30), step(30, 1.0, 3.0)
    far[:, 50:] = 9.0
    near[:, 36:] = 9.0
    assert evaluate(sample(far, step(30))) == both(0, 0)
    assert evaluate(sample(near, step(30))) == both(3, 0)


def test_predictions_where_the_truth_is_unknown_have_no_edges():
    true, pred = step(30), step(30)
    true[:, 36:] = 0
    pred[:, 38:] = 9.0
    pred[5, 60] = np.nan
    assert evaluate(sample(pred, true)) == both(0, 0)


def test_least_ratio_of_the_metric():
    pair = sample(step(31, 1.0, 1.3), step(30, 1.0, 1.3))
    assert evaluate(pair, min_ratio=1.25) == both(1, 1)
    # Without a true edge there is nothing to report, and no reason to stop a training.
    assert evaluate(pair, min_ratio=1.35) == {}


def test_the_crop_is_that_of_the_other_metric():
    # Of 480 x 640 rows 45 to 470 count. The only jump is in the white border, or in the middle.
    border, middle = np.full((480, 640), 2.0), np.full((480, 640), 2.0)
    border[:20], middle[:200] = 4.0, 4.0
    assert evaluate(sample(border, border), crop='eigen') == {}
    assert evaluate(sample(middle, middle), crop='eigen') == both(0, 0)
    assert evaluate(sample(border, border)) == both(0, 0)
    with pytest.raises(ValueError, match=r"crop: expected None or 'eigen', got 'nyu'"):
        DepthBoundaryError(crop='nyu')


def test_images_without_edges_do_not_count():
    flat = sample(step(20), np.full((HEIGHT, WIDTH), 3.0))
    moved = [sample(step(30 + k), step(30)) for k in (1, 4)]
    assert evaluate(flat, *moved, prefix='nyu') == pytest.approx(
        {'nyu/dbe_acc': 2.5, 'nyu/dbe_comp': 2.5}
    )


def test_prediction_of_another_size():
    with pytest.raises(ValueError, match=r'got \(64, 31\) for .*scene_1\.jpg'):
        evaluate(sample(step(30).T, step(30)))
