"""The losses of matting, by hand and against loops."""

import math

import pytest
import torch
from testing_utils import make_tensor
from upsampler_oracles import refused

from sapa_mm.matting import alpha_loss, composition_loss


def image(*values):
    """A map (1, 1, 1, W)."""
    return torch.tensor(values).view(1, 1, 1, -1)


def colours(*values):
    """An image (1, 3, 1, 1) of one pixel."""
    return torch.tensor(values).view(1, 3, 1, 1)


def test_alpha_by_hand():
    pred, alpha = image(0.5, 0.75, 3.0, 0.0), image(1.0, 0.5, 0.0, 1.0)
    unknown = image(True, True, False, False)
    assert alpha_loss(pred, alpha, unknown).shape == ()
    # Over two pixels and one.
    assert alpha_loss(pred, alpha, unknown).item() == pytest.approx((0.5 + 0.25) / 3)
    assert alpha_loss(pred, alpha, image(*[True] * 4)).item() == pytest.approx(4.75 / 5)
    assert alpha_loss(pred, pred, image(*[True] * 4)).item() == pytest.approx(4e-6 / 5)


def test_composition_by_hand():
    pred, alpha, unknown = image(0.25), image(0.75), image(True)
    foreground, background = colours(1.0, 0.5, 0.25), colours(0.0, 0.75, 0.25)
    loss = composition_loss(pred, alpha, foreground, background, unknown)
    assert loss.shape == ()
    # The last colour is that of both, and so is the composite.
    assert loss.item() == pytest.approx((0.5 + 0.125 + 1e-6) / 2)
    inverted = composition_loss(pred, alpha, background, foreground, unknown)
    assert inverted.item() == pytest.approx(loss.item())


def test_the_mean_is_over_images():
    pred, alpha = torch.zeros(3, 1, 1, 4), torch.zeros(3, 1, 1, 4)
    pred[0] = 0.5
    pred[1] = 1.0
    pred[2] = 8.0
    unknown = torch.zeros(3, 1, 1, 4, dtype=torch.bool)
    unknown[0, :, :, :1] = True
    unknown[1, :, :, :3] = True
    # An image of four pixels and no unknown one counts as 0.
    expected = (0.5 / 2 + 3.0 / 4 + 0) / 3
    assert alpha_loss(pred, alpha, unknown).item() == pytest.approx(expected)
    foreground = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1).expand(3, 3, 1, 4)
    loss = composition_loss(pred, alpha, foreground, torch.zeros(3, 3, 1, 4), unknown)
    assert loss.item() == pytest.approx(1.75 * expected)


def by_loop(pred, alpha, foreground, background, unknown):
    """Both losses of float64 tensors, pixel by pixel."""
    totals = [0.0, 0.0]
    n, _, h, w = pred.shape
    for i in range(n):
        pixels = [(y, x) for y in range(h) for x in range(w) if unknown[i, 0, y, x]]
        sums = [0.0, 0.0]
        for y, x in pixels:
            p, a = pred[i, 0, y, x].item(), alpha[i, 0, y, x].item()
            sums[0] += math.sqrt((p - a) ** 2 + 1e-12)
            for f, b in zip(foreground[i, :, y, x], background[i, :, y, x], strict=True):
                merged, estimate = (m * f.item() + (1 - m) * b.item() for m in (a, p))
                sums[1] += math.sqrt((estimate - merged) ** 2 + 1e-12)
        for j in range(2):
            totals[j] += sums[j] / (len(pixels) + 1) / n
    return totals


def make_batch(n, h, w, dtype=torch.float64, layout='contiguous'):
    pred = make_tensor(n, 1, h, w, dtype=dtype, layout=layout)
    alpha = make_tensor(n, 1, h, w, dtype=dtype, layout=layout).sigmoid()
    foreground, background = (
        make_tensor(n, 3, h, w, dtype=dtype, layout=layout).sigmoid() for _ in range(2)
    )
    return pred, alpha, foreground, background, torch.rand(n, 1, h, w) < 0.4


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced', 'transposed'])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str
)
@pytest.mark.parametrize('shape', [(1, 5, 7), (3, 6, 4), (2, 1, 1)], ids=str)
def test_are_the_definition(shape, dtype, tolerance, layout):
    pred, alpha, foreground, background, unknown = make_batch(*shape, dtype, layout)
    expected = by_loop(*(t.double() for t in (pred, alpha, foreground, background)), unknown)
    got = [
        alpha_loss(pred, alpha, unknown),
        composition_loss(pred, alpha, foreground, background, unknown),
    ]
    for loss, value in zip(got, expected, strict=True):
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(value, rel=tolerance)


def test_gradients_numerically():
    pred, alpha, foreground, background, unknown = make_batch(2, 3, 4)
    pred.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: alpha_loss(p, alpha, unknown), pred)
    assert torch.autograd.gradcheck(
        lambda p: composition_loss(p, alpha, foreground, background, unknown), pred
    )


def losses(pred, alpha, foreground, background, unknown):
    yield alpha_loss(pred, alpha, unknown)
    yield composition_loss(pred, alpha, foreground, background, unknown)


def test_known_pixels_have_no_gradient():
    pred, *rest, unknown = make_batch(3, 6, 5, torch.float32)
    pred.requires_grad_()
    for loss in losses(pred, *rest, unknown):
        (gradient,) = torch.autograd.grad(loss, pred)
        assert gradient[~unknown].eq(0).all()
        assert gradient[unknown].ne(0).all()


def test_the_size_of_the_gradient():
    """That of the absolute error, over the unknown pixels of the image and one, and the batch."""
    pred, alpha, foreground, background, unknown = make_batch(3, 6, 5)
    pred.requires_grad_()
    numbers = unknown.sum((1, 2, 3), keepdim=True) + 1
    (gradient,) = torch.autograd.grad(alpha_loss(pred, alpha, unknown), pred)
    expected = torch.where(unknown, (pred - alpha).sign() / numbers / 3, 0)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-6, atol=1e-9)
    loss = composition_loss(pred, alpha, foreground, background, unknown)
    (gradient,) = torch.autograd.grad(loss, pred)
    expected = expected * (foreground - background).abs().sum(1, keepdim=True)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-4, atol=1e-6)


def test_without_an_error_there_is_no_gradient():
    _, alpha, *rest = make_batch(2, 4, 3, torch.float32)
    pred = alpha.clone().requires_grad_()
    for loss in losses(pred, alpha, *rest):
        (gradient,) = torch.autograd.grad(loss, pred)
        assert gradient.eq(0).all()  # and not NaN


def test_nothing_unknown():
    pred, *rest, unknown = make_batch(2, 4, 3, torch.float32)
    pred.requires_grad_()
    for loss in losses(pred, *rest, torch.zeros_like(unknown)):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, pred)
        assert gradient.eq(0).all()


def test_half_precision_predictions():
    """What autocast gives is measured in float32: 1e-12 is 0 in float16."""
    pred, alpha, foreground, background, unknown = make_batch(2, 33, 31, torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        low = pred.to(dtype)
        for loss, expected in zip(
            losses(low, alpha, foreground, background, unknown),
            losses(low.float(), alpha, foreground, background, unknown),
            strict=True,
        ):
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_shapes_that_would_broadcast():
    pred, alpha, foreground, background, unknown = make_batch(2, 4, 4, torch.float32)
    for wrong in (alpha[:, 0], alpha[:1], alpha[..., :1]):
        with refused('alpha', error=ValueError):
            alpha_loss(pred, wrong, unknown)
        with refused('alpha', error=ValueError):
            composition_loss(pred, wrong, foreground, background, unknown)
    for wrong in (unknown[:, 0], unknown[:1]):
        with refused('unknown', error=ValueError):
            alpha_loss(pred, alpha, wrong)
