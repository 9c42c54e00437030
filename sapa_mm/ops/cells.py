"""Points laid out by the cell that is their parent, for products of one cell's points at a time."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .parents import first_child, parents


def _slots(length: int, parent_length: int) -> tuple[list[int], list[int], int]:
    """Return each cell's first pixel on an axis, its number of pixels, and the largest of these."""
    bounds = [int(first_child(i, length, parent_length)) for i in range(parent_length + 1)]
    counts = [stop - start for start, stop in itertools.pairwise(bounds)]
    return bounds[:-1], counts, max(counts)


def split_by_cell(x: Tensor, size: Sequence[int]) -> Tensor:
    """Lay the pixels of a map out by their parent.

    Args:
        x: (N, C, Hg, Wg).
        size: (H, W), at most (Hg, Wg), the grid of the cells.

    Returns:
        (N, H * W, S, C), with S the pixels of the largest cell, row-major; 0 where a cell has
        fewer.
    """
    for axis, cells in zip((2, 3), size, strict=True):
        length = x.shape[axis]
        firsts, counts, slots = _slots(length, cells)
        if length == cells * slots:
            continue
        slot = torch.arange(slots, device=x.device)
        places = torch.tensor(firsts, device=x.device)[:, None] + slot
        own = slot < torch.tensor(counts, device=x.device)[:, None]
        shape = [-1 if i == axis else 1 for i in range(4)]
        # The pixel of a slot that is left over gets no gradient, so the backward adds no two.
        x = x.index_select(axis, places.clamp(max=length - 1).flatten())
        x = x.masked_fill(~own.view(shape), 0)
    x = x.unflatten(3, (size[1], -1)).unflatten(2, (size[0], -1))  # (N, C, H, R, W, R)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def join_cells(x: Tensor, size: Sequence[int], high_size: Sequence[int]) -> Tensor:
    """Undo `split_by_cell`.

    Args:
        x: (N, H * W, S, C).
        size: (H, W), the grid of the cells.
        high_size: (Hg, Wg).

    Returns:
        (N, C, Hg, Wg).
    """
    slots = [_slots(length, cells)[2] for length, cells in zip(high_size, size, strict=True)]
    x = x.unflatten(2, slots).unflatten(1, size).permute(0, 5, 1, 3, 2, 4)
    x = x.flatten(4, 5).flatten(2, 3)
    for axis, cells, length in zip((2, 3), size, high_size, strict=True):
        firsts, _, most = _slots(length, cells)
        if length == cells * most:
            continue
        pixels = torch.arange(length, device=x.device)
        parent = parents(length, cells, x.device)
        places = parent * most + pixels - torch.tensor(firsts, device=x.device)[parent]
        x = x.index_select(axis, places)
    return x


def sum_over_windows(weights: Tensor, points: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sum points into the cells of the window around their parent, by weights.

    Args:
        weights: (N, H * W, S, K*K), of `split_by_cell`, window positions row-major.
        points: (N, H * W, S, C), likewise.
        size: (H, W). What falls outside this grid is lost.

    Returns:
        The sums (N, C, H, W), and those of the weights (N, 1, H, W).
    """
    window = round(weights.shape[3] ** 0.5)
    ones = points.new_ones(()).expand(*points.shape[:3], 1)
    sums = weights.transpose(2, 3) @ torch.cat([points, ones], 3)  # (N, H * W, K*K, C + 1)
    columns = sums.permute(0, 3, 2, 1).flatten(1, 2)
    sums = F.fold(columns, tuple(size), window, padding=window // 2)
    return sums[:, :-1], sums[:, -1:]
