"""Bins of equal logarithmic width: bounds, labels, and the way back."""

import math

import pytest
import torch

from sapa_mm.depth import SpacingIncreasingDiscretization


def test_thresholds_are_the_released_models():
    bins = SpacingIncreasingDiscretization()
    thresholds = bins.thresholds()
    assert thresholds.shape == (69,)
    # What the released program computes, exp(i / 25 - 0.36), to the digits of its constants.
    released = (torch.arange(69, dtype=torch.float64) / 25 - 0.36).exp()
    torch.testing.assert_close(thresholds, released, rtol=1e-3, atol=0)
    assert bins.step == pytest.approx(1 / 25, rel=1e-3)


@pytest.mark.parametrize(
    ('low', 'high', 'count'), [(0.698, 10.59, 68), (1.0, 16.0, 4), (0.5, 80.0, 1), (1.0, 1.1, 7)]
)
def test_a_depth_comes_back_within_half_a_bin(low, high, count):
    bins = SpacingIncreasingDiscretization(low, high, count)
    depth = torch.linspace(math.log(low), math.log(high), 10_001, dtype=torch.float64).exp()[1:-1]
    labels = bins.encode(depth)
    assert labels.min() == 0 and labels.max() == count - 1
    error = (bins.decode(labels).double().log() - depth.log()).abs()
    assert error.max() <= bins.step / 2 * (1 + 1e-5)
    # And somewhere it is as large.
    assert error.max() >= 0.99 * bins.step / 2


def test_labels_by_hand():
    # The bounds are 1, 2, 4, 8 and 16.
    bins = SpacingIncreasingDiscretization(1.0, 16.0, 4)
    torch.testing.assert_close(
        bins.thresholds(), torch.tensor([1.0, 2, 4, 8, 16], dtype=torch.float64)
    )
    depth = torch.tensor([0.2, 1.0, 1.99, 2.01, 7.9, 8.1, 15.9, 16.0, 100.0])
    assert bins.encode(depth).tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 3]
    middles = [2**0.5, 2**1.5, 2**2.5, 2**3.5]
    assert bins.decode(torch.arange(4)).tolist() == pytest.approx(middles)
    # All thresholds passed is the last bin.
    assert bins.decode(torch.tensor([4])).item() == pytest.approx(middles[-1])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(min_depth=0.0), 'min_depth: expected a positive number, got 0'),
        (dict(max_depth=-1.0), 'max_depth: expected a positive number, got -1'),
        (dict(min_depth=3.0, max_depth=3.0), r'max_depth: expected more than 3.0 m'),
        (dict(num_bins=0), 'num_bins: expected a positive int, got 0'),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SpacingIncreasingDiscretization(**options)
