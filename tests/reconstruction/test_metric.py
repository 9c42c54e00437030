"""The metric's values, against ones computed by hand and from SSIM's formula."""

import math

import pytest
import torch
from mmengine.evaluator import Evaluator
from torch import Tensor
from torch.nn import functional as F

from sapa_mm.reconstruction import ReconstructionMetric

METRIC = dict(type=ReconstructionMetric.__name__)


def evaluate(*pairs: tuple[Tensor, Tensor], size: int | None = None) -> dict[str, float]:
    """The metrics of (prediction, target), through mmengine's evaluator, in two batches."""
    evaluator = Evaluator(METRIC)
    samples = [dict(pred=pred, target=target) for pred, target in pairs]
    for batch in (samples[:1], samples[1:]):
        evaluator.process(batch)
    return evaluator.evaluate(len(pairs) if size is None else size)


def constant(value: float) -> Tensor:
    return torch.full((1, 16, 16), value)


def test_values_by_hand():
    # The squared errors are .01 and .09, and their mean is .05. Without variance SSIM is
    # C1 / (mu^2 + C1), with C1 = 1e-4.
    found = evaluate((constant(0.1), constant(0)), (constant(0.3), constant(0)))
    assert found.keys() == {'PSNR', 'SSIM', 'GlobalSSIM', 'RMSE', 'MAE'}
    assert found['RMSE'] == pytest.approx(math.sqrt(0.05))
    # The mean of the images' own, 20 and 10.46 dB, would be 15.23 dB.
    assert found['PSNR'] == pytest.approx(-10 * math.log10(0.05))
    assert found['MAE'] == pytest.approx(0.2)
    for name in ('SSIM', 'GlobalSSIM'):
        assert found[name] == pytest.approx((1e-4 / 0.0101 + 1e-4 / 0.0901) / 2, rel=1e-4)


def ssim(pred: Tensor, target: Tensor) -> float:
    """Equation 13 of Wang et al., 2004, over Gaussian windows of 11 x 11 that fit the image."""
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image.double()[:, None], window[None, None])

    mu_x, mu_y = mean(pred), mean(target)
    var_x = mean(pred.double() ** 2) - mu_x**2
    var_y = mean(target.double() ** 2) - mu_y**2
    cov = mean(pred.double() * target.double()) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mu_x * mu_y + c1) * (2 * cov + c2)
    return (value / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))).mean().item()


def test_half_precision():
    halves = [value.bfloat16() for value in (constant(0.25), constant(0.0))]
    assert evaluate(tuple(halves))['RMSE'] == pytest.approx(0.25)


def test_ssim_is_the_published_formula():
    target = torch.rand(1, 20, 24)
    pred = target + 0.2 * torch.randn(1, 20, 24)
    found = evaluate((pred, target))
    assert 0.3 < found['SSIM'] < 0.95
    assert found['SSIM'] == pytest.approx(ssim(pred, target), abs=1e-5)


def test_global_ssim_has_one_window():
    # Both images are 1 on half of their pixels, which are the same for a half of them: means of .5,
    # variances of .25, and no covariance.
    target = torch.zeros(1, 12, 16)
    target[:, :6] = 1
    pred = torch.zeros(1, 12, 16)
    pred[:, :, :8] = 1
    found = evaluate((pred, target), (target, target))
    assert found['GlobalSSIM'] == pytest.approx((9e-4 / (0.5 + 9e-4) + 1) / 2)
    # Each channel has a value of its own, and images count alike whatever their size.
    pair = torch.cat([pred, target, target, target]), target.expand(4, 12, 16)
    found = evaluate(pair, (torch.ones(1, 99, 99), torch.ones(1, 99, 99)))
    assert found['GlobalSSIM'] == pytest.approx(((9e-4 / (0.5 + 9e-4) + 3) / 4 + 1) / 2)


def test_images_smaller_than_a_window():
    with pytest.raises(ValueError, match='at least 11 pixels a side, got one of 10'):
        evaluate((torch.zeros(1, 16, 10), torch.zeros(1, 16, 10)))


def test_nothing_is_clipped():
    assert evaluate((constant(1.5), constant(1)))['MAE'] == pytest.approx(0.5)


def test_a_perfect_reconstruction():
    image = torch.rand(1, 16, 16)
    found = evaluate((image, image.clone()))
    one = pytest.approx(1)
    assert found == {'PSNR': math.inf, 'SSIM': one, 'GlobalSSIM': one, 'RMSE': 0, 'MAE': 0}


def test_large_images_count_more():
    # 768 values have an error of .5, and 256 have none: pixels are averaged, not images.
    found = evaluate(
        (torch.full((3, 16, 16), 0.5), torch.zeros(3, 16, 16)), (constant(0), constant(0))
    )
    assert found['MAE'] == pytest.approx(0.375)


def test_what_a_distributed_sampler_repeats_is_dropped():
    pairs = [(constant(value), constant(0)) for value in (0.1, 0.3, 0.9)]
    assert evaluate(*pairs, size=2)['MAE'] == pytest.approx(0.2)


def test_sizes_that_differ():
    with pytest.raises(ValueError, match=r'one shape, got \(1, 1, 16, 16\) and \(1, 1, 16, 12\)'):
        evaluate((constant(0), torch.zeros(1, 16, 12)))
