"""Differentiable SLIC: points are assigned softly to the clusters around them, in turns."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .assignment import Assignment
from .cells import join_cells, split_by_cell, sum_over_windows
from .checks import check_map, check_positive_int
from .layout import accumulation_dtype

WINDOW = 3  # cells


def soft_slic(features: Tensor, size: Sequence[int], iterations: int = 5) -> Assignment:
    r"""Group the pixels of a map into a grid of superpixels.

    With the pixels x, the centres S, and the 3 x 3 cells l + p around the parent l of a pixel l',
    an iteration is

    .. math::
        Q_{l'}(p) = \mathrm{softmax}_p\left(-\lVert x_{l'} - S_{l+p} \rVert^2\right), \qquad
        S_k = \sum_{l'} Q_{l'}(k - l)\, x_{l'} \Big/ \sum_{l'} Q_{l'}(k - l)

    (SSN: Superpixel Sampling Networks, Jampani et al., ECCV 2018, equations 3 and 4). The first
    centres are means, by adaptive average pooling; parents stay as they are. Cells outside the grid
    take no part. Pixels are compared cell by cell, so that no tensor of every pixel and every
    superpixel exists, and in float32 (float64 for float64), under autocast too: in half precision
    one pixel in a hundred or more is closest to a wrong centre.

    Args:
        features: (N, D, Hg, Wg), float16, bfloat16, float32 or float64, any strides.
        size: (H, W), the grid of superpixels, at most (Hg, Wg).
        iterations: How often the pixels are assigned; the centres move in between. Default: 5.

    Returns:
        The last assignment, its weights (N, 9, Hg, Wg) in float32 (float64 for float64).

    Raises:
        TypeError: ``features`` no floating point tensor, ``size`` not two ints, or ``iterations``
            no int.
        ValueError: ``features`` not of four dimensions or empty, a grid larger than they are, or a
            number that is not positive.
    """
    check_map('features', features, '(N, D, Hg, Wg)')
    size = _check_size(size, features)
    check_positive_int('iterations', iterations)
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(accumulation_dtype(features.dtype))
        # What all pixels have in common would only cost digits.
        features = features - features.detach().mean((2, 3), keepdim=True)
        weights = _iterate(features, size, iterations)
        return Assignment(join_cells(weights, size, features.shape[2:]), size)


def _check_size(size: object, features: Tensor) -> tuple[int, int]:
    """Return a grid as a tuple; raise TypeError or ValueError unless it fits the features."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise TypeError(f'size: expected two ints (H, W), got {size!r}')
    for side in size:
        check_positive_int('size', side)
    if size[0] > features.shape[2] or size[1] > features.shape[3]:
        raise ValueError(
            f'size: expected at most that of features, {tuple(features.shape[2:])}, got '
            f'{tuple(size)}'
        )
    return size[0], size[1]


def _iterate(features: Tensor, size: tuple[int, int], iterations: int) -> Tensor:
    """Return the last assignment by cell, (N, H * W, S, 9); 0 in slots without a pixel."""
    ones = features.new_ones(1, 1, *features.shape[2:])
    owned = split_by_cell(ones, size) > 0  # (1, H * W, S, 1)
    inside = _windows(features.new_ones(1, 1, *size)).transpose(2, 3) > 0  # (1, H * W, 1, 9)
    centers = F.adaptive_avg_pool2d(features, size)
    # Distances hold no large numbers when a cell's pixels and its window are seen from its centre.
    origin = centers.detach().flatten(2).transpose(1, 2)[:, :, None]  # (N, H * W, 1, D)
    points = split_by_cell(features, size)
    local = points - origin

    def assign(centers: Tensor) -> Tensor:
        window = _windows(centers) - origin  # (N, H * W, 9, D)
        # The square of the pixel's own features is the same for every cell of its window.
        scores = 2 * local @ window.transpose(2, 3) - window.square().sum(3)[:, :, None]
        return scores.masked_fill(~inside, float('-inf')).softmax(3) * owned

    weights = assign(centers)
    for _ in range(iterations - 1):
        sums, total = sum_over_windows(weights, points, size)
        weights = assign(sums / total.masked_fill(total == 0, 1))
    return weights


def _windows(centers: Tensor) -> Tensor:
    """Return the 3 x 3 cells around every cell of (N, D, H, W): (N, H * W, 9, D)."""
    columns = F.unfold(centers, WINDOW, padding=WINDOW // 2)
    return columns.unflatten(1, (centers.shape[1], -1)).permute(0, 3, 2, 1)
