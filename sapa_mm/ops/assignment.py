"""An assignment of points to the clusters around them, and what can be done with one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .assembly import assemble
from .cells import split_by_cell, sum_over_windows
from .checks import check_alike, check_map
from .dispatch import autocast_is_on
from .layout import accumulation_dtype
from .parents import parents, upsample_parent


def inside_grid(
    size: Sequence[int], high_size: Sequence[int], kernel_size: int, device: torch.device
) -> Tensor:
    """Find which window positions lie in a grid.

    Args:
        size: (H, W), the grid.
        high_size: (Hg, Wg) of the points.
        kernel_size: K, odd.
        device: Where the result lies.

    Returns:
        Bool (1, K*K, Hg, Wg), window positions row-major.
    """
    ones = torch.ones(1, 1, *size, device=device)
    inside = F.unfold(ones, kernel_size, padding=kernel_size // 2).unflatten(2, size)
    return upsample_parent(inside, high_size) > 0


class Assignment(NamedTuple):
    """How much every point of a map belongs to each of the K x K clusters around its parent.

    Attributes:
        weights: (N, K*K, Hg, Wg), window positions row-major; not negative and of sum 1.
        size: (H, W), the grid of the clusters.
    """

    weights: Tensor
    size: tuple[int, ...]

    @property
    def kernel_size(self) -> int:
        """K."""
        # While torch.jit traces, which counts FLOPs, a size is a tensor.
        return math.isqrt(int(self.weights.shape[1]))

    def decode(self, value: Tensor, *, hard: bool = False) -> Tensor:
        r"""Give every point the values of its clusters.

        .. math:: o_{l'} = \sum_p w_{l'}(p)\, v_{l+p}

        Args:
            value: (N, C, H, W), the clusters' values, in the dtype of the weights.
            hard: Take the value of the likeliest cluster alone.

        Returns:
            (N, C, Hg, Wg) in the dtype of ``value``; under autocast, unless hard, in autocast's.

        Raises:
            TypeError: Not a tensor, or not the dtype of the weights and no autocast.
            ValueError: Another batch or device than the weights', or another grid than the
                clusters'.
        """
        check_map('value', value, '(N, C, H, W)')
        check_alike('value', value, 'weights', self.weights, same_dtype=not autocast_is_on(value))
        if tuple(value.shape[2:]) != self.size:
            raise ValueError(
                f'value: expected the grid of the clusters, {self.size}, got '
                f'{tuple(value.shape[2:])}'
            )
        if not hard:
            return assemble(self.weights, value, kernel_size=self.kernel_size)
        labels = self.labels()
        places = labels.flatten(1)[:, None].expand(-1, value.shape[1], -1)
        return value.flatten(2).gather(2, places).unflatten(2, labels.shape[1:])

    def average(self, value: Tensor) -> Tensor:
        r"""Give every cluster the mean of its points: the normalized transpose of `decode`.

        .. math:: s_k = \sum_{l'} w_{l'}(k - l)\, v_{l'} \Big/ \sum_{l'} w_{l'}(k - l)

        over the points l' whose window, around their parent l, holds the cluster k.

        Args:
            value: (N, C, Hg, Wg), the points' values, in the dtype of the weights.

        Returns:
            (N, C, H, W) in the dtype of ``value``, summed in float32 (float64 for float64). A
            cluster without points gets 0.

        Raises:
            TypeError: Not a tensor, or not the dtype of the weights and no autocast.
            ValueError: Another batch, device or size than the weights'.
        """
        check_map('value', value, '(N, C, Hg, Wg)')
        check_alike('value', value, 'weights', self.weights, same_dtype=not autocast_is_on(value))
        if value.shape[2:] != self.weights.shape[2:]:
            raise ValueError(
                f'value: expected the size of the weights, {tuple(self.weights.shape[2:])}, got '
                f'{tuple(value.shape[2:])}'
            )
        with torch.autocast(value.device.type, enabled=False):
            weights, points = (
                split_by_cell(x.to(accumulation_dtype(x.dtype)), self.size)
                for x in (self.weights, value)
            )
            sums, total = sum_over_windows(weights, points, self.size)
            return (sums / total.masked_fill(total == 0, 1)).to(value.dtype)

    def labels(self) -> Tensor:
        """Find the likeliest cluster of every point.

        Returns:
            Its place in the grid, row * W + column, (N, Hg, Wg), int64.
        """
        k, width = self.kernel_size, self.size[1]
        high_size = tuple(self.weights.shape[2:])
        inside = inside_grid(self.size, high_size, k, self.weights.device)
        position = self.weights.masked_fill(~inside, -1).argmax(1)
        rows, columns = (
            parents(high, low, position.device)
            for high, low in zip(high_size, self.size, strict=True)
        )
        row = rows[:, None] + position // k - k // 2
        column = columns + position % k - k // 2
        return row * width + column
