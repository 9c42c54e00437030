"""The numbers of depth against hand computations, and mmseg's DepthMetric beside them."""

import math
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation.metrics import DepthMetric
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample

from sapa_mm.depth import DepthBoundaryError, EigenDepthMetric, depth_errors
from sapa_mm.depth.metric import eigen_region

NAMES = ('d1', 'd2', 'd3', 'abs_rel', 'sq_rel', 'rmse', 'rmse_log', 'log10', 'silog')
# Of g = 1, 2, 4 and p = 1.2, 2, 2.2 by pocket calculator: e = .1823216, 0, -.5978370.
PRED, TRUE = (1.2, 2.0, 2.2), (1.0, 2.0, 4.0)
NUMBERS = dict(
    d1=2 / 3,
    d2=2 / 3,
    d3=1.0,
    abs_rel=0.65 / 3,
    sq_rel=0.85 / 3,
    rmse=1.0456258,
    rmse_log=0.3608555,
    log10=0.1129395,
    silog=33.32162,
)


def sample(pred, true=None, name='scene_1.jpg'):
    """What a depth estimator gives for an image."""
    made = SegDataSample(metainfo=dict(img_path=name))
    made.pred_depth_map = PixelData(data=torch.tensor(pred, dtype=torch.float32)[None])
    if true is not None:
        made.gt_depth_map = PixelData(data=torch.tensor(true, dtype=torch.float32)[None])
    return made


def evaluate(samples, kind=EigenDepthMetric, batch_size=2, **options):
    evaluator = Evaluator(kind(**options))
    for start in range(0, len(samples), batch_size):
        evaluator.process(samples[start : start + batch_size])
    return evaluator.evaluate(len(samples))


def random_maps(size, seed=0):
    generator = np.random.default_rng(seed)
    true = generator.uniform(0.5, 9, size)
    true[generator.random(size) < 0.1] = 0
    return generator.uniform(0.4, 12, size), true


def by_numpy(pred, true, low=1e-3, high=10.0):
    """The nine numbers once more, pixel by pixel."""
    pairs = [
        (min(max(p, low), high), g)
        for p, g in zip(np.ravel(pred).tolist(), np.ravel(true).tolist(), strict=True)
        if low < g < high
    ]
    logs = [math.log(p) - math.log(g) for p, g in pairs]
    squares = math.fsum(e * e for e in logs) / len(logs)
    count = len(pairs)
    return dict(
        **{f'd{i}': sum(max(p / g, g / p) < 1.25**i for p, g in pairs) / count for i in (1, 2, 3)},
        abs_rel=math.fsum(abs(g - p) / g for p, g in pairs) / count,
        sq_rel=math.fsum((g - p) ** 2 / g for p, g in pairs) / count,
        rmse=math.sqrt(math.fsum((g - p) ** 2 for p, g in pairs) / count),
        rmse_log=math.sqrt(squares),
        log10=math.fsum(abs(math.log10(g) - math.log10(p)) for p, g in pairs) / count,
        silog=100 * math.sqrt(squares - (math.fsum(logs) / count) ** 2),
    )


def test_hand_computation():
    found = depth_errors(torch.tensor(PRED), torch.tensor(TRUE))
    assert tuple(found) == NAMES
    assert found == pytest.approx(NUMBERS, rel=1e-6)
    assert evaluate([sample([PRED], [TRUE])]) == pytest.approx(NUMBERS, rel=1e-6)


def test_perfect_prediction():
    expected = dict.fromkeys(NAMES, 0.0) | dict(d1=1.0, d2=1.0, d3=1.0)
    assert evaluate([sample([TRUE], [TRUE])]) == expected


def test_scale_is_not_in_silog():
    numbers = evaluate([sample([[3.0, 6.0, 1.5]], [[2.0, 4.0, 1.0]])])
    assert numbers['silog'] == pytest.approx(0, abs=1e-4)
    assert numbers['rmse_log'] == pytest.approx(math.log(1.5), rel=1e-6)


def test_random_maps_of_an_odd_size():
    pred, true = (x.astype(np.float32) for x in random_maps((37, 53)))
    assert evaluate([sample(pred, true)]) == pytest.approx(by_numpy(pred, true), rel=1e-6)


def test_thresholds_are_strict():
    assert evaluate([sample([[1.25, 1.0]], [[1.0, 1.0]])])['d1'] == 0.5


def test_prediction_is_clamped_and_truth_strictly_inside():
    pred = [[0.0, -3.0, 40.0, math.inf, 2.0, 2.0, 2.0]]
    true = [[1.0, 1.0, 8.0, 8.0, 10.0, 0.5, 0.0]]
    found = evaluate([sample(pred, true)], min_depth=0.5, max_depth=10.0)
    expected = by_numpy([0.5, 0.5, 10.0, 10.0], [1.0, 1.0, 8.0, 8.0], 0.5, 10.0)
    assert found == pytest.approx(expected, rel=1e-6)


def test_every_image_counts_alike():
    """The mean over images is not that over pixels, nor the root of the mean square of all."""
    samples = [sample([[2.0, 2.0, 2.0]], [[1.0, 1.0, 1.0]]), sample([[4.0, 0, 0]], [[4.0, 0, 0]])]
    found = evaluate(samples)
    assert found['rmse'] == pytest.approx(0.5)
    assert found['abs_rel'] == pytest.approx(0.5)
    assert found['d1'] == 0.5


def test_images_without_known_depth_are_skipped():
    whole = [sample([PRED], [TRUE])]
    empty = sample([PRED], [[0.0, 20.0, -1.0]])
    assert evaluate([empty, *whole, empty]) == evaluate(whole)
    with pytest.raises(
        ValueError, match=r'between 0\.001 and 10\.0 m in some image, got none in 2'
    ):
        evaluate([empty, empty])


@pytest.mark.parametrize(
    ('size', 'rows', 'columns'),
    [
        ((480, 640), (45, 471), (41, 601)),
        # 22.5, 235.5, 20.5 and 300.5 are rounded to even numbers.
        ((240, 320), (22, 236), (20, 300)),
        ((960, 1280), (90, 942), (82, 1202)),
    ],
)
def test_eigen_crop(size, rows, columns):
    true = np.full(size, 2.0, np.float32)
    pred = np.full(size, 8.0, np.float32)
    pred[slice(*rows), slice(*columns)] = 2.0
    assert eigen_region(size) == (slice(*rows), slice(*columns))
    assert evaluate([sample(pred, true)], crop='eigen')['rmse'] == 0
    assert evaluate([sample(pred, true)])['rmse'] > 1
    # Each of the outermost rows and columns counts.
    for place in ((rows[0], 200), (rows[1] - 1, 200), (100, columns[0]), (100, columns[1] - 1)):
        other = pred.copy()
        other[place] = 3.0
        assert evaluate([sample(other, true)], crop='eigen')['rmse'] > 0


def test_prediction_that_is_nan():
    with pytest.raises(ValueError, match=r"^pred_depth_map: .* got NaN for 'scene_7\.jpg'"):
        evaluate([sample([[1.0, math.nan]], [[1.0, 1.0]], 'scene_7.jpg')])
    # Where no depth is known it does not matter.
    assert evaluate([sample([[1.0, math.nan]], [[1.0, 0.0]])])['d1'] == 1


def test_prediction_of_another_size():
    with pytest.raises(ValueError, match=r'truth, \(4, 6\), got \(2, 3\) for .*behind a Resize'):
        evaluate([sample(np.ones((2, 3)), np.ones((4, 6)))])


def test_chosen_numbers_in_their_order():
    found = evaluate([sample([PRED], [TRUE])], depth_metrics=['silog', 'd2'])
    assert list(found.items()) == [
        ('silog', pytest.approx(NUMBERS['silog'])),
        ('d2', pytest.approx(NUMBERS['d2'])),
    ]


def test_registered_in_mmseg_with_a_prefix():
    with DefaultScope.overwrite_default_scope('mmseg'):
        metric = METRICS.build(dict(type='EigenDepthMetric', prefix='nyu', crop='eigen'))
    assert isinstance(metric, DepthMetric)
    evaluator = Evaluator(metric)
    evaluator.process([sample(np.full((48, 64), 2.0), np.full((48, 64), 2.0))])
    assert set(evaluator.evaluate(1)) == {f'nyu/{name}' for name in NAMES}


def test_results_hold_numbers_and_no_pixels():
    pred, true = random_maps((40, 50))
    metric = EigenDepthMetric()
    Evaluator(metric).process([sample(pred, true)])
    (kept,) = metric.results
    assert all(type(value) is float for value in kept.values())
    assert len(kept) == 9


def test_half_precision_and_strides():
    """Differences and squares are taken in float64, whatever the prediction is."""
    pred, true = random_maps((31, 44))
    made = sample(pred, true)
    made.pred_depth_map = PixelData(data=torch.tensor(pred.T.copy()).half().T[None])
    expected = by_numpy(pred.astype(np.float16), true.astype(np.float32))
    assert evaluate([made]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('format_only', [False, True])
def test_predictions_are_written(tmp_path, format_only):
    # The parent squeezes what it writes, so that it takes two rows to see how they lie.
    pred = np.array([[1.25, 0.0, 9.5], [1.0, 2.0, 3.0]])
    true = None if format_only else np.full((2, 3), 2.0)
    folder = tmp_path / 'predictions'
    options = dict(output_dir=str(folder), depth_scale_factor=1000, format_only=format_only)
    metric = EigenDepthMetric(**options)
    evaluator = Evaluator(metric)
    evaluator.process([sample(pred, true, 'a/scene_1.jpg'), sample(pred / 2, true, 'scene_2.jpg')])
    numbers = evaluator.evaluate(2)
    assert sorted(path.name for path in folder.iterdir()) == ['scene_1.png', 'scene_2.png']
    written = cv2.imread(str(folder / 'scene_1.png'), cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint16
    np.testing.assert_array_equal(written, [[1250, 0, 9500], [1000, 2000, 3000]])
    assert metric.format_only is format_only
    assert numbers.keys() == (set() if format_only else set(NAMES))


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(depth_metrics=['d1', 'd4']), ValueError, r"^depth_metrics: .* got \['d1', 'd4'\]"),
        (dict(depth_metrics=[]), ValueError, '^depth_metrics: '),
        (dict(min_depth=0), ValueError, 'min_depth'),
        (dict(max_depth='10'), TypeError, 'max_depth'),
        (dict(min_depth=2.0, max_depth=2.0), ValueError, r'^max_depth: expected more than 2\.0 m'),
        (dict(crop='nyu_crop'), ValueError, "^crop: expected None or 'eigen', got 'nyu_crop'"),
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        EigenDepthMetric(**options)


# The faults of mmseg's metric, which are the reason for this one.


def stock(samples, **options):
    return evaluate(samples, DepthMetric, **options)


def test_mmseg_takes_no_names():
    with pytest.raises(TypeError):
        DepthMetric(depth_metrics=['d1'])
    assert EigenDepthMetric(depth_metrics=['d1']).metrics == ('d1',)


def test_mmseg_does_not_clamp():
    far, none = sample([[12.0]], [[8.0]]), sample([[0.0]], [[2.0]])
    bounds = dict(min_depth_eval=1e-3, max_depth_eval=10.0)
    assert stock([far], **bounds)['abs_rel'] == pytest.approx(0.5)
    assert evaluate([far])['abs_rel'] == pytest.approx(0.25)
    assert math.isinf(stock([none], **bounds)['rmse_log'])
    assert evaluate([none])['rmse_log'] == pytest.approx(math.log(2000), rel=1e-6)


def test_mmseg_has_another_silog():
    mean = (math.log(1.2) + math.log(0.55)) / 3
    square = (math.log(1.2) ** 2 + math.log(0.55) ** 2) / 3
    found = stock([sample([PRED], [TRUE])])['silog']
    assert found == pytest.approx(math.sqrt(square - 0.5 * mean**2), rel=1e-5)
    ours = evaluate([sample([PRED], [TRUE])])['silog']
    assert ours == pytest.approx(100 * math.sqrt(square - mean**2), rel=1e-6)


def test_mmseg_turns_an_empty_image_into_nan():
    samples = [sample([PRED], [TRUE]), sample([PRED], [[0.0, 0.0, 0.0]])]
    assert all(math.isnan(value) for value in stock(samples).values())
    assert evaluate(samples) == pytest.approx(NUMBERS, rel=1e-6)


def test_mmseg_keeps_every_pixel():
    pred, true = random_maps((40, 50))
    metric = DepthMetric()
    Evaluator(metric).process([sample(pred, true)])
    assert sum(part.numel() for part in metric.results[0]) > 1.5 * true.size


def test_mmseg_crops_every_size_alike():
    pred = np.full((240, 320), 2.0)
    pred[238, :] = 4.0  # Below the crop of 480 x 640 pixels, at half of its size.
    samples = [sample(pred, np.full((240, 320), 2.0))]
    assert stock(samples, crop_type='nyu_crop')['rmse'] > 0.1
    assert evaluate(samples, crop='eigen')['rmse'] == 0


# Several processes


def uneven_images():
    """Three images for two processes; the second has no known depth."""
    generator = np.random.default_rng(3)
    images = []
    for k in range(3):
        true = np.full((24, 40), 2.0)
        true[:, 18 + k :] = 4.0
        pred = np.roll(true, k, axis=1) * generator.uniform(0.9, 1.2, true.shape)
        images.append((pred, true * (k != 1)))
    return images


def judge_share(rank, port, folder):
    """Judge the images of one process, the first once more in the place of a fourth."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    evaluator = Evaluator([EigenDepthMetric(), DepthBoundaryError()])
    images = uneven_images()
    for k in ((0, 2), (1, 0))[rank]:
        evaluator.process([sample(*images[k])])
    torch.save(evaluator.evaluate(3), Path(folder) / f'{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # two processes import the frameworks
def test_two_processes_gather(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shares = [
        # mmengine makes a folder where it runs.
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(port), str(tmp_path)], cwd=tmp_path
        )
        for rank in (0, 1)
    ]
    try:
        assert [share.wait(timeout=120) for share in shares] == [0, 0]
    finally:
        for share in shares:
            share.kill()
    found = [torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1)]
    alone = Evaluator([EigenDepthMetric(), DepthBoundaryError()])
    alone.process([sample(*image) for image in uneven_images()])
    expected = alone.evaluate(3)
    assert set(expected) == {*NAMES, 'dbe_acc', 'dbe_comp'}
    assert found == [pytest.approx(expected, rel=1e-12)] * 2


if __name__ == '__main__':
    judge_share(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])


@pytest.mark.parametrize('kind', [EigenDepthMetric, DepthBoundaryError])
def test_a_test_set_without_truth(kind):
    with pytest.raises(ValueError, match=r"gt_depth_map: .*got none for 'scene_9.jpg'"):
        evaluate([sample(np.ones((4, 5)), name='scene_9.jpg')], kind)


def test_writing_alone_wants_a_folder():
    with pytest.raises(ValueError, match='output_dir: expected a folder with format_only=True'):
        EigenDepthMetric(format_only=True)
