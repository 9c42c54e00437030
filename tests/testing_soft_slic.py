"""Differentiable SLIC and the average over clusters written out: every point against every cell."""

from functools import cache

import torch
from torch import Tensor


@cache
def window_cells(size: tuple[int, int], high_size: tuple[int, int], kernel_size: int) -> Tensor:
    """The cell row * W + column at every window position, -1 outside: int64 (K*K, Hg*Wg)."""
    (h, w), (hg, wg), radius = size, high_size, kernel_size // 2
    cells = []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            for i in range(hg):
                for j in range(wg):
                    row, column = i * h // hg + dy, j * w // wg + dx
                    inside = 0 <= row < h and 0 <= column < w
                    cells.append(row * w + column if inside else -1)
    return torch.tensor(cells).view(kernel_size**2, hg * wg)


def to_dense(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights (N, K*K, Hg, Wg) as those of all cells, (N, Hg*Wg, H*W)."""
    n, positions, *high_size = weights.shape
    cells = window_cells(size, tuple(high_size), round(positions**0.5))
    count = size[0] * size[1]
    # What lies outside goes to one more cell, which is cut off.
    places = cells.masked_fill(cells < 0, count).mT.expand(n, -1, -1)
    dense = weights.new_zeros(n, places.shape[1], count + 1)
    return dense.scatter_add(2, places, weights.flatten(2).mT)[..., :count]


def to_windows(dense: Tensor, size: tuple[int, int], high_size: tuple[int, int]) -> Tensor:
    """The way back, (N, 9, Hg, Wg)."""
    cells = window_cells(size, high_size, 3)
    found = dense.gather(2, cells.clamp(min=0).mT.expand(len(dense), -1, -1))
    return torch.where(cells.mT >= 0, found, 0).mT.unflatten(2, high_size)


def average(weights: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
    """Every cell's mean of a value (N, C, Hg, Wg), 0 where nothing is assigned: (N, C, H, W)."""
    dense = to_dense(weights, size)
    mass = dense.sum(dim=1)[:, None]
    total = value.flatten(2) @ dense
    mean = torch.where(mass > 0, total / torch.where(mass > 0, mass, 1), 0)
    return mean.unflatten(2, size)


def pooled(features: Tensor, size: tuple[int, int]) -> Tensor:
    """The means of the cells, those that share a row or a column of pixels included."""
    (h, w), (hg, wg) = size, features.shape[2:]
    rows = [
        torch.stack(
            [
                features[
                    :, :, r * hg // h : -(-(r + 1) * hg // h), c * wg // w : -(-(c + 1) * wg // w)
                ].mean(dim=(2, 3))
                for c in range(w)
            ],
            dim=2,
        )
        for r in range(h)
    ]
    return torch.stack(rows, dim=2)


def slic(features: Tensor, size: tuple[int, int], iterations: int) -> Tensor:
    """The last association (N, 9, Hg, Wg) of features (N, D, Hg, Wg)."""
    high_size = tuple(features.shape[2:])
    allowed = to_dense(features.new_ones(1, 9, *high_size), size) > 0
    points = features.flatten(2).mT
    centres = pooled(features, size).flatten(2).mT
    for _ in range(iterations):
        distance = (points[:, :, None] - centres[:, None]).square().sum(dim=3)
        dense = (-distance).masked_fill(~allowed, -torch.inf).softmax(dim=2)
        centres = dense.mT @ points / dense.sum(dim=1)[..., None]
    return to_windows(dense, size, high_size)
