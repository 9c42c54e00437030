"""The scale-invariant logarithmic loss against hand-made cases."""

import math

import pytest
import torch
from mmseg.registry import MODELS

from sapa_mm.depth import ScaleInvariantLogLoss


def test_a_case_by_hand():
    # e = ln 2, ln 4 and, of the third, 0; the fourth pixel is unknown.
    true = torch.tensor([1.0, 2.0, 3.0, 0.0]).reshape(2, 1, 1, 2)
    pred = torch.tensor([2.0, 8.0, 3.0, 7.0]).reshape(2, 1, 1, 2)
    errors = [math.log(2), math.log(4), 0.0]
    mean, square = sum(errors) / 3, sum(e * e for e in errors) / 3
    expected = 10 * math.sqrt(square - 0.85 * mean**2)
    assert ScaleInvariantLogLoss()(pred, true).item() == pytest.approx(expected, rel=1e-6)
    half = ScaleInvariantLogLoss(variance_focus=0.5, scale=2.0, loss_weight=3.0)(pred, true)
    assert half.item() == pytest.approx(6 * math.sqrt(square - 0.5 * mean**2), rel=1e-6)


def test_pixels_are_pooled_over_the_batch():
    # One pixel is known in the first image and three in the second.
    true = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]).reshape(2, 1, 2, 2)
    pred = torch.full_like(true, math.e)
    pred[0] = 1.0
    errors = [0.0, 1.0, 1.0, 1.0]
    expected = 10 * math.sqrt(3 / 4 - 0.85 * (3 / 4) ** 2)
    assert len(errors) == 4
    assert ScaleInvariantLogLoss()(pred, true).item() == pytest.approx(expected, rel=1e-6)


def test_min_depth_is_exclusive():
    true = torch.tensor([0.1, 0.2]).reshape(1, 1, 1, 2)
    pred = torch.tensor([5.0, 0.2]).reshape(1, 1, 1, 2)
    assert ScaleInvariantLogLoss(min_depth=0.1)(pred, true).item() == 0
    assert ScaleInvariantLogLoss(min_depth=0.05)(pred, true).item() > 1


def test_gradients():
    torch.manual_seed(0)
    true = torch.rand(2, 1, 3, 4, dtype=torch.float64) * 5
    true[0, 0, 0] = 0
    true[1, 0, 1, 1] = torch.nan
    pred = (torch.rand(2, 1, 3, 4, dtype=torch.float64) * 5 + 0.5).requires_grad_()
    loss = ScaleInvariantLogLoss()
    assert torch.autograd.gradcheck(lambda x: loss(x, true), pred)
    loss(pred, true).backward()
    assert not pred.grad[0, 0, 0].any() and pred.grad[1, 0, 1, 1] == 0
    assert pred.grad[0, 0, 1:].all()


@pytest.mark.parametrize('bad', [0.0, -1.0, math.nan, math.inf])
def test_no_known_pixel_is_a_zero_with_a_gradient(bad):
    pred = torch.rand(2, 1, 3, 3, requires_grad=True)
    loss = ScaleInvariantLogLoss()(pred, torch.full((2, 1, 3, 3), bad))
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
    assert pred.grad is not None and not pred.grad.any()


def test_a_perfect_prediction_has_no_gradient():
    pred = (torch.rand(1, 1, 4, 4) + 1).requires_grad_()
    loss = ScaleInvariantLogLoss()(pred, pred.detach().clone())
    loss.backward()
    assert loss.item() == 0 and not pred.grad.any()


@pytest.mark.parametrize('variance_focus', [0.85, 1.0])
def test_one_factor_everywhere_stays_finite(variance_focus):
    # With the focus 1 only rounding is left below the root.
    true = torch.rand(1, 1, 50, 50) + 1
    pred = (1.7 * true).requires_grad_()
    loss = ScaleInvariantLogLoss(variance_focus=variance_focus)(pred, true)
    expected = 10 * math.sqrt(1 - variance_focus) * math.log(1.7)
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    loss.backward()
    assert pred.grad.isfinite().all()


def test_zero_and_tiny_predictions_stay_finite():
    pred = torch.tensor([0.0, 1e-30, 1e-3, 10.0]).reshape(1, 1, 2, 2).requires_grad_()
    loss = ScaleInvariantLogLoss()(pred, torch.full((1, 1, 2, 2), 2.0))
    loss.backward()
    assert loss.isfinite() and pred.grad.isfinite().all()
    # They are pulled up, and not left where they are.
    assert (pred.grad.flatten()[:2] < 0).all()


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    true, pred = torch.rand(2, 1, 5, 5) * 5, torch.rand(2, 1, 5, 5) * 5 + 0.1
    pred = pred.bfloat16()
    loss = ScaleInvariantLogLoss()
    with torch.autocast('cpu', torch.bfloat16):
        got = loss(pred, true)
    assert got.dtype == torch.float32 and got.equal(loss(pred.float(), true))


def test_it_is_mmsegs():
    assert isinstance(MODELS.build(dict(type='ScaleInvariantLogLoss')), ScaleInvariantLogLoss)
    assert ScaleInvariantLogLoss(loss_name='loss_other').loss_name == 'loss_other'


@pytest.mark.parametrize('name', ['scale', 'min_depth', 'eps', 'loss_weight'])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=f'{name}: expected a positive number, got 0'):
        ScaleInvariantLogLoss(**{name: 0})
    with pytest.raises(TypeError, match=f'{name}: expected a positive number'):
        ScaleInvariantLogLoss(**{name: 'much'})


def test_bad_focus_and_shapes():
    with pytest.raises(ValueError, match=r'variance_focus: expected 0 to 1, got 1.5'):
        ScaleInvariantLogLoss(variance_focus=1.5)
    with pytest.raises(ValueError, match=r'output: expected the shape of depth, .*5\).*got.*4\)'):
        ScaleInvariantLogLoss()(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 5, 5))
