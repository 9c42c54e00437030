"""The errors of alpha mattes, against ones by hand and an independent slow implementation."""

import math
import re

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement, PixelData
from scipy import ndimage

from sapa_mm.matting import MattingMetric, connectivity_error, gradient_error, mse, sad

ERRORS = (sad, mse, gradient_error, connectivity_error)


def alpha(*rows):
    return np.array(rows, np.uint8)


def everywhere(like):
    return np.ones(like.shape, bool)


def taps():
    """The filter's Gaussian and its derivative, each of unit norm, by their formulas."""
    smooth = [math.exp(-(d**2) / (2 * 1.4**2)) for d in range(-4, 5)]
    slope = [-d * value for d, value in zip(range(-4, 5), smooth, strict=True)]
    return tuple([v / math.sqrt(sum(w * w for w in f)) for v in f] for f in (smooth, slope))


def slow_gradient(image):
    """The gradient's length, pixel by pixel with the two filters of 81 taps."""
    smooth, slope = taps()
    height, width = image.shape
    low, high = int(image.min()), int(image.max())
    found = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            along_x = along_y = 0.0
            for i in range(-4, 5):
                for j in range(-4, 5):
                    row, column = min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)
                    value = (int(image[row, column]) - low) / (high - low)
                    along_x += smooth[i + 4] * slope[j + 4] * value
                    along_y += slope[i + 4] * smooth[j + 4] * value
            found[y, x] = math.sqrt(along_x**2 + along_y**2)
    return found


def slow_components(mask):
    """The 4-connected components as sets of pixels, by the first pixel's place."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    components = []
    while left:
        todo = [min(left)]
        left.remove(todo[0])
        found = set()
        while todo:
            y, x = todo.pop()
            found.add((y, x))
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left:
                    left.remove(near)
                    todo.append(near)
        components.append(found)
    return components


def slow_connectivity(pred, truth, unknown):
    """The connectivity error, pixel by pixel, in thousands."""
    regions = []
    for k in range(1, 11):
        # k / 10 <= p / 255 in whole numbers.
        components = slow_components(
            (10 * pred.astype(int) >= 255 * k) & (10 * truth.astype(int) >= 255 * k)
        )
        regions.append(max(components, key=len) if components else None)
    total = 0.0
    for y, x in np.argwhere(unknown):
        level = 1.0
        for k, region in enumerate(regions, 1):
            if region is not None and (y, x) not in region:
                level = (k - 1) / 10
                break
        phi = []
        for image in (pred, truth):
            difference = int(image[y, x]) / 255 - level
            phi.append(1 - difference if difference >= 0.15 else 1)
        total += abs(phi[0] - phi[1])
    return total / 1000


def smooth_map(rng, shape, sigma):
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return np.clip(128 + 120 * noise / noise.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('shape', [(23, 31), (5, 37), (29, 3)])
def test_an_independent_implementation(seed, shape):
    rng = np.random.default_rng(seed)
    truth = smooth_map(rng, shape, 2)
    noise = 0.4 * (smooth_map(rng, shape, 1).astype(float) - 128)
    pred = np.clip(truth + noise, 10, 240).astype(np.uint8)  # whose extremes differ from truth's
    unknown = rng.random(shape) < 0.6
    difference = (pred.astype(float) - truth)[unknown] / 255
    gradients = (slow_gradient(pred) - slow_gradient(truth))[unknown]
    expected = (
        np.abs(difference).sum() / 1000,
        (difference**2).mean(),
        (gradients**2).sum() / 1000,
        slow_connectivity(pred, truth, unknown),
    )
    assert min(expected) > 0
    found = [error(pred, truth, unknown) for error in ERRORS]
    assert found == pytest.approx(expected, rel=1e-9)
    # Views with other strides, such as a tensor's, give the same.
    views = [np.asfortranarray(image) for image in (pred, truth, unknown)]
    assert [error(*views) for error in ERRORS] == pytest.approx(expected, rel=1e-9)


def test_sums_and_squares_by_hand():
    # The differences are -.2, .4 and, in the known region, 1. In uint8 the first would be .8.
    pred, truth = alpha([0, 255, 255]), alpha([51, 153, 0])
    unknown = np.array([[True, True, False]])
    assert sad(pred, truth, unknown) == pytest.approx(0.6 / 1000)
    assert mse(pred, truth, unknown) == pytest.approx((0.04 + 0.16) / 2)


def test_gradient_of_a_step_by_hand():
    # All rows are one step, also above the border, so that the vertical derivative is 0 and the
    # horizontal one of column 5 + m is sum(smooth) times the sum of slope's taps that see the
    # bright side. A constant prediction has no gradient. A truth of 100 and 200 is stretched.
    # With integrals for sums it is 4 sqrt(pi) sigma^3 = 19.5 a row.
    smooth, slope = taps()
    lengths = [sum(smooth) * abs(sum(slope[max(4 - m, 0) :])) for m in range(-5, 6)]
    expected = 3 * sum(length**2 for length in lengths) / 1000
    truth = np.repeat(alpha([100] * 5 + [200] * 6), 3, axis=0)
    pred = np.full_like(truth, 7)
    found = gradient_error(pred, truth, everywhere(truth))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(3 * 4 * math.sqrt(math.pi) * 1.4**3 / 1000, rel=0.01)
    assert gradient_error(truth, truth // 2, everywhere(truth)) == pytest.approx(0, abs=1e-12)
    assert gradient_error(truth, 255 - truth, everywhere(truth)) == pytest.approx(0, abs=1e-12)


def test_level_of_alpha_153():
    # The last pixel has .8 and .6. It is in Omega_1 to Omega_6 and not in Omega_7: l = .6,
    # phi_p = 1 - .2, phi_g = 1. Were 153 below level 6, phi_p would be .7.
    pred, truth = alpha([255, 255, 204]), alpha([255, 255, 153])
    found = connectivity_error(pred, truth, everywhere(pred))
    assert found == pytest.approx(0.2 / 1000)
    # 152 is below it: l = .5, phi_p = 1 - .3, and .596 - .5 is below .15.
    truth = alpha([255, 255, 152])
    assert connectivity_error(pred, truth, everywhere(pred)) == pytest.approx(0.3 / 1000)


def test_levels_without_a_component_are_skipped():
    # Nothing is at level 5 in both, so that no pixel is outside an Omega: l = 1 and phi = 1.
    # With empty Omegas l would be .4 and phi_g .8.
    pred, truth = alpha([102, 102], [102, 102]), alpha([153, 153], [153, 153])
    assert connectivity_error(pred, truth, everywhere(pred)) == 0
    # One opaque pixel fills all levels. The others, which leave at level 5, then have l = .4.
    pred[0, 0] = truth[0, 0] = 255
    assert connectivity_error(pred, truth, everywhere(pred)) == pytest.approx(3 * 0.2 / 1000)


@pytest.mark.parametrize('value', [0, 128, 255])
def test_maps_of_one_value(value):
    truth = np.full((7, 9), value, np.uint8)
    assert [error(truth, truth, everywhere(truth)) for error in ERRORS] == [0, 0, 0, 0]
    pred = np.zeros_like(truth)
    # No level has a component, and neither map has a gradient.
    expected = (63 * value / 255 / 1000, (value / 255) ** 2, 0, 0)
    found = [error(pred, truth, everywhere(truth)) for error in ERRORS]
    assert found == pytest.approx(expected)


def test_largest_component():
    pred = np.zeros((7, 7), np.uint8)
    pred[5:, 5:] = 255  # in the corner, 4 pixels
    pred[2, 2:5] = 204  # inside, 3 pixels
    pred[4, 4] = 204  # which touches the corner's by its corner
    truth = np.where(pred > 0, 255, 0).astype(np.uint8)
    # The four of .8 are outside Omega_1: l = 0, phi_p = .2 and phi_g = 0.
    assert connectivity_error(pred, truth, everywhere(pred)) == pytest.approx(4 * 0.2 / 1000)
    # Without the corner the three of the inside are the largest up to level 8, and those above
    # have none; the single one is outside. The 45 pixels of 0 are no component.
    pred[5:, 5:] = truth[5:, 5:] = 0
    assert connectivity_error(pred, truth, everywhere(pred)) == pytest.approx(0.2 / 1000)


def test_the_first_of_equal_components_counts():
    # Only the second of two is outside Omega_1; its phi differ by .2 and .4 a pixel.
    pred = alpha([0, 0, 204, 204], [153, 0, 0, 0], [153, 0, 0, 0])
    truth = np.where(pred > 0, 255, 0).astype(np.uint8)
    second = alpha([0] * 4, [1, 0, 0, 0], [1, 0, 0, 0]).astype(bool)
    first = (pred > 0) & ~second
    assert connectivity_error(pred, truth, second) == pytest.approx(2 * 0.4 / 1000)
    # The first one is the largest up to level 8, and nothing is above.
    assert connectivity_error(pred, truth, first) == 0


def test_small_differences_leave_a_pixel_connected():
    # The pixel at the right leaves at level 2 (l = .1) for its truth of .1; p - l is .149, .153.
    truth = alpha([255, 255, 26])
    for value, expected in ((63, 0), (64, 64 / 255 - 0.1)):
        pred = alpha([255, 255, value])
        found = connectivity_error(pred, truth, everywhere(pred))
        assert found == pytest.approx(expected / 1000)


def test_the_known_region_does_not_count():
    rng = np.random.default_rng(0)
    truth = smooth_map(rng, (41, 43), 2)
    unknown = np.zeros(truth.shape, bool)
    unknown[:, :20] = True
    pred = truth.copy()
    pred[:, 24:] = truth[::-1, 24:]  # what the filter does not reach, with the same extremes
    assert not np.array_equal(pred, truth)
    assert [error(pred, truth, unknown) for error in (sad, mse, gradient_error)] == [0, 0, 0]
    # Connectivity is global: a pixel's phi are equal where its alphas are, whatever its level.
    assert connectivity_error(pred, truth, unknown) == 0


@pytest.mark.parametrize('error', ERRORS)
def test_bad_input(error):
    good, unknown = np.zeros((4, 5), np.uint8), np.ones((4, 5), bool)
    for arguments, exception, message in (
        ((good / 255, good, unknown), ValueError, 'pred must be of uint8, got float64'),
        ((good, good > 0, unknown), ValueError, 'truth must be of uint8, got bool'),
        ((good, good, good), ValueError, 'unknown must be of bool, got uint8'),
        ((good, good.tolist(), unknown), TypeError, 'truth must be a NumPy array, got list'),
        (
            (good[None], good, unknown),
            ValueError,
            'pred must be a map (height, width), got shape (1, 4, 5)',
        ),
        ((good, good.T, unknown), ValueError, 'one size, got (4, 5), (5, 4) and (4, 5)'),
        ((good, good[:1], unknown), ValueError, 'one size, got (4, 5), (1, 5) and (4, 5)'),
        ((good, good, ~unknown), ValueError, 'unknown has no pixel'),
    ):
        with pytest.raises(exception, match=re.escape(message)):
            error(*arguments)


def sample(pred, truth, trimap, **meta):
    """A data sample as the network returns it."""
    found = BaseDataElement(metainfo=meta)
    for key, image in (('pred_alpha', pred), ('gt_alpha', truth), ('trimap', trimap)):
        found.set_field(PixelData(data=torch.from_numpy(image)[None]), key)
    return found


def test_means_over_images():
    rng = np.random.default_rng(3)
    samples, errors = [], []
    for shape in ((19, 27), (33, 21), (14, 50)):
        truth, pred = (smooth_map(rng, shape, 2) for _ in range(2))
        trimap = rng.choice(np.array([0, 128, 255], np.uint8), shape)
        samples.append(sample(pred, truth, trimap))
        errors.append([error(pred, truth, trimap == 128) for error in ERRORS])
    evaluator = Evaluator(dict(type='MattingMetric', prefix='test'))
    for batch in (samples[:2], samples[2:]):
        evaluator.process(batch)
    found = evaluator.evaluate(3)
    names = [f'test/{name}' for name in ('SAD', 'MSE', 'Grad', 'Conn')]
    assert found == pytest.approx(dict(zip(names, np.mean(errors, 0), strict=True)))
    # Of three results for two images, the last is the sampler's repetition.
    evaluator = Evaluator(dict(type='MattingMetric'))
    evaluator.process(samples)
    assert evaluator.evaluate(2)['SAD'] == pytest.approx(np.mean(errors[:2], 0)[0])


def test_samples_are_named_in_errors():
    good, trimap = np.zeros((4, 5), np.uint8), np.full((4, 5), 128, np.uint8)
    for pred, known, message in (
        (good, good, 'a/b.png: unknown has no pixel'),
        (good[:3], trimap, 'a/b.png: pred, truth and unknown must be of one size'),
        (good.astype(np.float32), trimap, 'a/b.png: pred_alpha must be of uint8'),
    ):
        broken = sample(good, good, known, img_path='a/b.png').to_dict()
        broken['pred_alpha']['data'] = torch.from_numpy(pred)[None]
        with pytest.raises(ValueError, match=message):
            MattingMetric().process({}, [broken])
