"""Boundary IoU against hand-counted cases, a distance transform, and mmseg's own evaluator."""

import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from scipy import ndimage

from sapa_mm.segmentation.boundary_iou import BoundaryIoU, boundary_areas, mask_boundary

CLASSES = ('ground', 'square')


def square(left: int, size: int = 20, side: int = 6) -> np.ndarray:
    """A class map with one square of class 1, its rows 4..9 and its first column ``left``."""
    image = np.zeros((size, size), dtype=np.int64)
    image[4 : 4 + side, left : left + side] = 1
    return image


def measure(pairs, classes=CLASSES, **kwargs) -> dict[str, float]:
    """Everything that is reported of (prediction, label) pairs."""
    metric = METRICS.build(dict(type='mmseg.BoundaryIoU', **kwargs))
    metric.dataset_meta = {'classes': classes}
    for pred, label in pairs:
        sample = {
            'pred_sem_seg': {'data': torch.from_numpy(pred)[None]},
            'gt_sem_seg': {'data': torch.from_numpy(label)[None]},
        }
        metric.process({}, [sample])
    return metric.evaluate(len(pairs))


def evaluate(pairs, classes=CLASSES, **kwargs) -> float:
    """MBIoU in percent of (prediction, label) pairs."""
    (value,) = measure(pairs, classes, **kwargs).values()
    return value


def test_shifted_square_counted_by_hand():
    label, pred = square(2), square(3)
    # d = 1: The square has rings of 20, whose rows 4 and 9 share columns 3..7. The ground has the
    # image's edge, 76, and rings of 28 round the squares, whose rows 3 and 10 share columns 2..8.
    intersection, union = boundary_areas(pred, label, num_classes=2, width=1)
    assert intersection.tolist() == [76 + 14, 10]
    assert union.tolist() == [2 * (76 + 28) - 90, 2 * 20 - 10]
    assert evaluate([(pred, label)]) == round(100 * (90 / 118 + 10 / 30) / 2, 2)

    # d = 2: there are 36 - 4 pixels each; the overlap of 30 lacks the six of either interior.
    intersection, union = boundary_areas(pred, label, num_classes=2, width=2)
    assert (intersection[1], union[1]) == (24, 40)


def test_width_follows_the_diagonal():
    metric = BoundaryIoU()
    # 0.02 * hypot is 0.57, 14.4, 17.1 and 50.
    sizes = ((20, 20), (400, 600), (512, 683), (1500, 2000))
    assert [metric.boundary_width(*size) for size in sizes] == [1, 14, 17, 50]
    # It is the shifted square of above with d = 2, round(0.07 * 28.28).
    assert BoundaryIoU(dilation_ratio=0.07).boundary_width(20, 20) == 2
    narrow, wide = (evaluate([(square(3), square(2))], dilation_ratio=r) for r in (0.02, 0.07))
    assert narrow < wide


def test_further_widths_and_every_class():
    pairs = [(square(3), square(2)), (square(2), square(2))]
    found = measure(pairs, (*CLASSES, 'absent'), widths=[2, 3], per_class=True)
    # The square's rings of 36 - 4 share 24, as above, and in the second image all of their 32.
    assert found['BIoU-2px.square'] == round(100 * (24 + 32) / (40 + 32), 2)
    # With d = 3 the rings are whole squares, whose overlap lacks a column of six.
    assert found['BIoU-3px.square'] == round(100 * (30 + 36) / (42 + 36), 2)
    assert list(found) == [
        *(name for name in ('mBIoU', 'mBIoU-2px', 'mBIoU-3px')),
        *(f'{b}.{c}' for b in ('BIoU', 'BIoU-2px', 'BIoU-3px') for c in CLASSES),
    ]
    for width, name in ((2, 'mBIoU-2px'), (3, 'mBIoU-3px')):
        # A ratio that gives this width gives the same; the absent class does not count.
        assert found[name] == evaluate(pairs, dilation_ratio=width / math.hypot(20, 20))
    assert found['mBIoU'] == evaluate(pairs)
    assert found['mBIoU'] == pytest.approx(
        (found['BIoU.ground'] + found['BIoU.square']) / 2, abs=0.01
    )


def test_image_edge_is_contour():
    edge = mask_boundary(np.ones((5, 6), dtype=bool), 2)
    assert edge.sum() == 30 - 1 * 2
    assert not edge[2, 2:4].any()
    assert edge.dtype == bool


def test_perfect_prediction_is_100():
    assert evaluate([(square(2), square(2))]) == 100.0


def test_disjoint_boundaries_are_0_for_the_class():
    intersection, union = boundary_areas(square(2), square(12), num_classes=2, width=1)
    assert (intersection[1], union[1]) == (0, 40)


def test_missed_hole_lowers_it_while_miou_hardly_moves():
    label = np.zeros((128, 128), dtype=np.int64)
    label[4:124, 4:124] = 1
    label[60:64, 60:64] = 0
    pred = label.copy()
    pred[60:64, 60:64] = 1
    sample = SegDataSample(
        pred_sem_seg=PixelData(data=torch.from_numpy(pred)[None]),
        gt_sem_seg=PixelData(data=torch.from_numpy(label)[None]),
    )
    evaluator = Evaluator(
        [
            dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'], prefix='region'),
            dict(type='mmseg.BoundaryIoU', prefix='edge'),
        ]
    )
    evaluator.dataset_meta = {'classes': CLASSES}
    evaluator.process(data_samples=[sample], data_batch={})
    values = evaluator.evaluate(1)
    # The regions share 1968 of 1984 ground pixels, and 14384 of 14400 of the square.
    assert values['region/mIoU'] == pytest.approx(
        100 * (1968 / 1984 + 14384 / 14400) / 2, abs=0.006
    )
    # d = 4. The square's rim is 14400 - 112**2; the hole adds a rim of 12**2 - 4**2, and the ground
    # inside the hole is lost: all of its 16 pixels lie in the boundary.
    rim, hole_rim, ground = 14400 - 112**2, 12**2 - 4**2, 128**2 - 120**2
    expected = 100 * (ground / (ground + 16) + rim / (rim + hole_rim)) / 2
    assert values['edge/mBIoU'] == pytest.approx(expected, abs=0.006)
    assert values['region/mIoU'] > 99.5
    assert values['edge/mBIoU'] < 97.5


def test_ignored_pixels_leave_both_maps():
    label, pred = square(2), square(2)
    # The prediction has a wrong block, all of it where the label is ignored.
    pred[14:18, 12:18] = 1
    assert evaluate([(pred, label)]) < 100
    label[14:18, 12:18] = 255
    assert evaluate([(pred, label)]) == 100.0
    # The index is an option, and what is then 255 is merely no class.
    assert evaluate([(pred, label)], ignore_index=254) < 100
    label[label == 255] = 254
    assert evaluate([(pred, label)], ignore_index=254) == 100.0


def test_images_add_up_before_the_division():
    # The square has (20 + 10) / (20 + 30), where the mean of 1 and 1/3 would be 0.667, and the
    # ground (104 + 90) / (104 + 118).
    value = evaluate([(square(2), square(2)), (square(3), square(2))])
    assert value == round(100 * (30 / 50 + 194 / 222) / 2, 2)


def test_absent_classes_do_not_enter_the_mean():
    names = ('ground', 'square', 'nowhere', 'nowhere either')
    assert evaluate([(square(2), square(2))], classes=names) == 100.0
    # A class that is predicted but absent counts as 0.
    pred = square(2)
    pred[0, 0] = 2
    two, three = (evaluate([(pred, square(2))], classes=names[:n]) for n in (2, 3))
    assert three == pytest.approx(two * 2 / 3, abs=0.01)


def test_no_labelled_pixel_gives_nan():
    label = np.full((8, 8), 255)
    assert math.isnan(evaluate([(np.zeros((8, 8), dtype=np.int64), label)]))


@pytest.mark.parametrize('size', [(37, 53), (64, 48), (1, 60)])
@pytest.mark.parametrize('width', [1, 3, 7])
def test_equals_a_chessboard_distance_transform(size, width):
    generator = np.random.default_rng(width)
    num_classes = 5

    def blobs():
        noise = ndimage.gaussian_filter(generator.normal(size=(num_classes, *size)), (0, 3, 3))
        return noise.argmax(0)

    pred, label = blobs(), blobs()
    label[generator.random(size) < 0.02] = 255

    def boundary(mask):
        distance = ndimage.distance_transform_cdt(np.pad(mask, 1), metric='chessboard')[1:-1, 1:-1]
        return (distance > 0) & (distance <= width)

    intersection, union = boundary_areas(pred, label, num_classes=num_classes, width=width)
    valid = label != 255
    for index in range(num_classes):
        truth, guess = boundary((label == index) & valid), boundary((pred == index) & valid)
        assert intersection[index] == (truth & guess).sum()
        assert union[index] == (truth | guess).sum()
    assert 0 < intersection.sum() < union.sum()


def test_the_table_lists_every_class(caplog):
    logger = MMLogger.get_instance('boundary_iou')
    logger.addHandler(caplog.handler)
    try:
        evaluate([(square(3), square(2))], classes=('ground', 'square', 'nowhere'))
    finally:
        logger.removeHandler(caplog.handler)
    rows = [row.split() for row in caplog.text.splitlines() if row.startswith('|')]
    assert rows[0][1::2] == ['Class', 'BIoU']
    assert [row[1::2] for row in rows[1:]] == [
        ['ground', '76.27'],
        ['square', '33.33'],
        ['nowhere', 'nan'],
    ]


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (dict(dilation_ratio=0), ValueError, 'dilation_ratio: expected a number in .* got 0'),
        (dict(dilation_ratio=1.5), ValueError, 'dilation_ratio'),
        (dict(dilation_ratio=math.nan), ValueError, 'dilation_ratio.* got nan'),
        (dict(dilation_ratio='2%'), TypeError, "dilation_ratio.* got '2%' of type str"),
        (dict(dilation_ratio=True), TypeError, 'dilation_ratio'),
        (dict(ignore_index=2.5), TypeError, 'ignore_index: expected an int, got 2.5'),
        (dict(ignore_index=None), TypeError, 'ignore_index'),
        (dict(collect_device='cuda'), ValueError, "collect_device: expected 'cpu' or 'gpu'"),
        (dict(prefix=3), TypeError, 'prefix: expected a str or None, got int'),
        (dict(widths=[2, 0]), ValueError, 'widths: expected a positive int, got 0'),
        (dict(widths=2), TypeError, 'widths: expected a sequence of ints, got 2'),
        (dict(widths=[2.0]), TypeError, 'widths'),
        (dict(per_class=1), TypeError, 'per_class'),
    ],
)
def test_bad_options_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        BoundaryIoU(**kwargs)


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match=r'one size, got \(20, 20\) and \(10, 10\)'):
        evaluate([(square(2), square(2, size=10))])
    with pytest.raises(ValueError, match=r'class maps .* got shape \(1, 2, 20, 20\)'):
        evaluate([(np.stack([square(2)] * 2), square(2))])
    with pytest.raises(ValueError, match=r"'classes', got \{'classes': \(\)\}"):
        evaluate([(square(2), square(2))], classes=())
