"""Local planar guidance against planes in space, and where rays run along them."""

import math

import pytest
import torch
from torch import Tensor

from sapa_mm.depth import local_planar_guidance
from sapa_mm.depth.planar_guidance import MIN_DENOMINATOR


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def raw(theta: float, phi: float, distance: float) -> list[float]:
    """The three numbers that give these angles, in degrees, and this distance."""
    return [logit(theta / 60), logit(phi / 360), logit(distance)]


@pytest.mark.parametrize('ratio', [1, 2, 4, 8])
def test_every_pixel_sees_its_plane(ratio):
    cells = [[raw(10, 30, 0.5), raw(45, 200, 0.9)], [raw(1, 100, 0.1), raw(30, 350, 0.3)]]
    planes = torch.tensor(cells, dtype=torch.float64).permute(2, 0, 1)[None]
    depth = local_planar_guidance(planes, ratio)
    assert depth.shape == (1, 1, 2 * ratio, 2 * ratio) and depth.dtype == torch.float64
    for row, (first, second) in enumerate(
        [[(10, 30, 0.5), (45, 200, 0.9)], [(1, 100, 0.1), (30, 350, 0.3)]]
    ):
        for column, (theta, phi, distance) in enumerate((first, second)):
            theta, phi = math.radians(theta), math.radians(phi)
            normal = (
                math.sin(theta) * math.cos(phi),
                math.sin(theta) * math.sin(phi),
                math.cos(theta),
            )
            for i in range(ratio):
                for j in range(ratio):
                    got = depth[0, 0, row * ratio + i, column * ratio + j].item()
                    # The ray through the pixel, a point at this depth, and the plane's equation.
                    ray = ((j - (ratio - 1) / 2) / ratio, (i - (ratio - 1) / 2) / ratio, 1.0)
                    point = [got * part for part in ray]
                    assert sum(n * p for n, p in zip(normal, point, strict=True)) == (
                        pytest.approx(distance, rel=1e-10)
                    )


def test_where_the_ray_runs_along_the_plane_depth_and_gradient_stay_finite():
    # Almost 60 degrees towards a corner of the cell.
    planes = torch.tensor([20.0, logit(225 / 360), 20.0]).reshape(1, 3, 1, 1).requires_grad_()
    depth = local_planar_guidance(planes, 8)
    assert depth.max().item() == pytest.approx(1 / MIN_DENOMINATOR, rel=1e-6)
    assert depth.min() > 0
    depth.sum().backward()
    assert planes.grad.isfinite().all()


def saturated(value: float) -> Tensor:
    return torch.full((1, 3, 2, 3), value)


@pytest.mark.parametrize('value', [1e4, -1e4, 0.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_numbers(value, dtype):
    planes = saturated(value).to(dtype).requires_grad_()
    depth = local_planar_guidance(planes, 8)
    assert depth.dtype == torch.float32 and depth.isfinite().all() and (depth >= 0).all()
    depth.sum().backward()
    assert planes.grad.isfinite().all()


def test_gradients():
    torch.manual_seed(0)
    planes = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: local_planar_guidance(x, 4), planes)


def test_autocast_computes_in_float32():
    planes = torch.randn(1, 3, 4, 5)
    with torch.autocast('cpu', torch.bfloat16):
        got = local_planar_guidance(planes, 4)
    assert got.equal(local_planar_guidance(planes, 4))


def test_memory_formats():
    planes = torch.randn(2, 3, 4, 5)
    expected = local_planar_guidance(planes, 2)
    for other in (planes.contiguous(memory_format=torch.channels_last), planes.mT.contiguous().mT):
        torch.testing.assert_close(local_planar_guidance(other, 2), expected)


def test_bad_input():
    with pytest.raises(ValueError, match='planes: expected 3 channels, got 4'):
        local_planar_guidance(torch.randn(1, 4, 2, 2), 8)
    with pytest.raises(ValueError, match='ratio: expected a positive int, got 0'):
        local_planar_guidance(torch.randn(1, 3, 2, 2), 0)
    with pytest.raises(TypeError, match='planes'):
        local_planar_guidance(torch.zeros(1, 3, 2, 2, dtype=torch.int64), 8)
