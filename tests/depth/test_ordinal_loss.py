"""Ordinal regression against a case by hand and the formula written out."""

import math

import pytest
import torch
from mmseg.registry import MODELS
from torch import Tensor

from sapa_mm.depth import OrdinalRegressionLoss, SpacingIncreasingDiscretization


def written_out(output: Tensor, depth: Tensor, low: float, high: float) -> Tensor:
    """The formula, pixel by pixel and threshold by threshold."""
    count = output.shape[1] // 2
    total, pixels = output.new_zeros(()), 0
    for n in range(len(depth)):
        for i in range(depth.shape[2]):
            for j in range(depth.shape[3]):
                d = depth[n, 0, i, j].item()
                if not 0 < d < math.inf:
                    continue
                pixels += 1
                label = math.floor(count * math.log(d / low) / math.log(high / low))
                label = min(max(label, 0), count - 1)
                for k in range(count):
                    # The softmax over the pair is the probability of "beyond".
                    p = output[n, 2 * k : 2 * k + 2, i, j].softmax(0)
                    total = total - p[1 if k < label else 0].log()
    return total / pixels


def example(dtype=torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    depth = torch.rand(2, 1, 3, 4, dtype=torch.float64) * 12 + 0.3
    depth[0, 0, 0] = torch.tensor([0.0, -1.0, math.nan, math.inf])
    return torch.randn(2, 10, 3, 4, dtype=dtype), depth


def test_a_case_by_hand():
    # The bounds are 1, 2, 4, 8 and 16, so that 5 m is in bin 2: two thresholds are passed.
    z = [0.3, -1.2, 2.0, 0.0]
    output = torch.tensor([[value for part in z for value in (0.5, 0.5 + part)]])[..., None, None]
    softplus = [math.log1p(math.exp(sign * x)) for sign, x in zip([-1, -1, 1, 1], z, strict=True)]
    loss = OrdinalRegressionLoss(1.0, 16.0)(output, torch.full((1, 1, 1, 1), 5.0))
    assert loss.item() == pytest.approx(sum(softplus), rel=1e-6)
    weighted = OrdinalRegressionLoss(1.0, 16.0, loss_weight=0.25)(
        output, torch.full((1, 1, 1, 1), 5.0)
    )
    assert weighted.item() == pytest.approx(sum(softplus) / 4, rel=1e-6)


def test_it_is_the_formula():
    output, depth = example()
    loss = OrdinalRegressionLoss(0.7, 10.0)(output, depth)
    assert loss.item() == pytest.approx(written_out(output, depth, 0.7, 10.0).item(), rel=1e-12)


def test_gradients():
    output, depth = example()
    output.requires_grad_()
    loss = OrdinalRegressionLoss(0.7, 10.0)
    assert torch.autograd.gradcheck(lambda x: loss(x, depth), output)
    loss(output, depth).backward()
    assert not output.grad[0, :, 0].any()
    assert output.grad[0, :, 1:].all() and output.grad[1].all()


@pytest.mark.parametrize('bad', [0.0, -3.0, math.nan, math.inf])
def test_no_known_pixel_is_a_zero_with_a_gradient(bad):
    output = torch.randn(2, 8, 3, 3, requires_grad=True)
    loss = OrdinalRegressionLoss()(output, torch.full((2, 1, 3, 3), bad))
    assert loss.item() == 0
    loss.backward()
    assert output.grad is not None and not output.grad.any()


@pytest.mark.parametrize('value', [1e4, -1e4])
def test_saturated_scores_keep_their_gradient(value):
    # Bin 3 of 4: the first three thresholds are passed.
    z = torch.full((1, 4, 1, 1), value)
    output = torch.stack([torch.zeros_like(z), z], 2).flatten(1, 2).requires_grad_()
    loss = OrdinalRegressionLoss(1.0, 16.0)(output, torch.full((1, 1, 1, 1), 9.0))
    wrong = 1 if value > 0 else 3
    assert loss.item() == pytest.approx(wrong * 1e4)
    loss.backward()
    expected = [0.0, 0, 0, 1] if value > 0 else [-1.0, -1, -1, 0]
    assert output.grad[0, 1::2, 0, 0].tolist() == pytest.approx(expected)


def test_half_precision_is_computed_in_float32():
    output, depth = example()
    output = output.bfloat16()
    loss = OrdinalRegressionLoss()
    with torch.autocast('cpu', torch.bfloat16):
        got = loss(output, depth.float())
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loss(output.double(), depth).item(), rel=1e-6)


def test_the_label_and_the_decoding_fit():
    # Scores that say exactly what the label is give the least loss, and its depth back.
    bins = SpacingIncreasingDiscretization(1.0, 16.0, 4)
    loss = OrdinalRegressionLoss(1.0, 16.0)
    for depth in (1.5, 3.0, 6.0, 12.0):
        losses = []
        for passed in range(4):
            z = torch.where(torch.arange(4) < passed, 9.0, -9.0)
            output = torch.stack([torch.zeros(4), z], 1).flatten()[None, :, None, None]
            losses.append(loss(output, torch.full((1, 1, 1, 1), depth)).item())
        best = losses.index(min(losses))
        decoded = bins.decode(torch.tensor(best)).item()
        assert abs(math.log(decoded / depth)) <= bins.step / 2


def test_it_is_mmsegs_and_refuses():
    assert isinstance(MODELS.build(dict(type='OrdinalRegressionLoss')), OrdinalRegressionLoss)
    with pytest.raises(ValueError, match='max_depth: expected more than'):
        OrdinalRegressionLoss(2.0, 1.0)
    with pytest.raises(ValueError, match='loss_weight: expected a positive number, got 0'):
        OrdinalRegressionLoss(loss_weight=0)
    for scores, size in ((7, (3, 3)), (8, (4, 3))):
        with pytest.raises(ValueError, match='output: expected pairs of scores'):
            OrdinalRegressionLoss()(torch.randn(1, scores, *size), torch.ones(1, 1, 3, 3))
