"""Local planar guidance: every cell of a feature map says which plane its pixels see."""

import math

import torch
from torch import Tensor

from ..ops.checks import check_map, check_positive_int
from ..ops.layout import accumulation_dtype

# The smallest denominator: depth is 20 times the plane's distance at most. A ray that runs along
# the plane would see it at infinity, and one beyond that behind the camera.
MIN_DENOMINATOR = 0.05


def local_planar_guidance(planes: Tensor, ratio: int) -> Tensor:
    r"""Compute the depth of the planes that cells see (Lee et al., BTS, 2019).

    With the three numbers (a, b, c) of a cell,

    .. math::
        \theta = \tfrac{\pi}{3} \sigma(a),\quad \varphi = 2 \pi \sigma(b),\quad n_4 = \sigma(c),
        \quad n = (\sin\theta \cos\varphi, \sin\theta \sin\varphi, \cos\theta)

    the pixel in row i and column j of the cell's k x k has

    .. math::
        d_{ij} = \frac{n_4}{n_1 u_j + n_2 v_i + n_3},\quad
        u_j = \frac{j - (k - 1) / 2}{k},\ v_i = \frac{i - (k - 1) / 2}{k}.

    The denominator is `MIN_DENOMINATOR` at least: at k = 8 it would reach zero in a corner of a
    cell, where :math:`\theta` is 58 degrees, and be negative beyond.

    Args:
        planes: Three numbers a cell, (N, 3, H, W), before the sigmoid.
        ratio: k, pixels of a cell in height and in width.

    Returns:
        Depth as a share of the largest one, (N, 1, H k, W k), in float32, or float64 if ``planes``
        are. It is not bounded by 1.

    Raises:
        TypeError: ``planes`` is no floating point tensor, or ``ratio`` no int.
        ValueError: Another number of channels than 3, or ``ratio`` is not positive.
    """
    check_map('planes', planes, '(N, 3, H, W)')
    if planes.shape[1] != 3:
        raise ValueError(f'planes: expected 3 channels, got {planes.shape[1]}')
    check_positive_int('ratio', ratio)
    with torch.autocast(planes.device.type, enabled=False):
        wide = planes.to(accumulation_dtype(planes.dtype))
        a, b, distance = wide.sigmoid().split(1, dim=1)
        theta, phi = a * (math.pi / 3), b * (2 * math.pi)
        normal = torch.cat([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], dim=1)
        normal, distance = (
            x.repeat_interleave(ratio, dim=2).repeat_interleave(ratio, dim=3)
            for x in (normal, distance)
        )
        offsets = (torch.arange(ratio, device=wide.device, dtype=wide.dtype) * 2 + 1 - ratio) / (
            2 * ratio
        )
        u = offsets.repeat(planes.shape[3])
        v = offsets.repeat(planes.shape[2])[:, None]
        n1, n2, n3 = normal.split(1, dim=1)
        return distance / (n1 * u + n2 * v + n3).clamp(min=MIN_DENOMINATOR)
