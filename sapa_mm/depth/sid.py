"""Spacing-increasing discretization: depth as one of bins of equal logarithmic width."""

import dataclasses
import math

import torch
from torch import Tensor

from ..ops.checks import check_positive, check_positive_int
from ..ops.layout import accumulation_dtype


@dataclasses.dataclass(frozen=True)
class SpacingIncreasingDiscretization:
    r"""Bins between two depths, the wider the farther (DORN, Fu et al., 2018).

    With :math:`\alpha` for ``min_depth``, :math:`\beta` for ``max_depth`` and K for ``num_bins``,
    bin i reaches from :math:`t_i` to :math:`t_{i+1}`,

    .. math::
        t_i = \exp\left(\ln \alpha + \frac{i}{K} \ln \frac{\beta}{\alpha}\right),\quad
        i = 0, \dots, K.

    The label of a depth is the number of its bin, from 0 to K - 1; depths outside of the two bounds
    get the nearest bin's. A label is decoded to the middle of its bin, the geometric mean of its
    bounds, so that a depth between the bounds comes back within half a bin.

    The paper takes the arithmetic mean of the bounds. The model that its authors released for NYU,
    with K = 68, :math:`\alpha` = 0.698 and :math:`\beta` = 10.59, decodes a label L to
    :math:`\exp((L - 1) / 25 - 0.36)`, which is :math:`t_{L-1}`: one label less than the paper, and
    the lower bound of a bin. Here it is the number of thresholds that are passed, and the middle.

    Args:
        min_depth: In metres, positive.
        max_depth: In metres, larger than ``min_depth``.
        num_bins: K, positive.

    Raises:
        TypeError: A number that is none.
        ValueError: A number that is not positive, or bounds that are not in order.
    """

    min_depth: float = 0.698
    max_depth: float = 10.59
    num_bins: int = 68

    def __post_init__(self) -> None:
        check_positive('min_depth', self.min_depth)
        check_positive('max_depth', self.max_depth)
        check_positive_int('num_bins', self.num_bins)
        if self.min_depth >= self.max_depth:
            raise ValueError(
                f'max_depth: expected more than {self.min_depth} m, the min_depth, got '
                f'{self.max_depth}'
            )

    @property
    def step(self) -> float:
        """Return the width of a bin in the logarithm of depth."""
        return math.log(self.max_depth / self.min_depth) / self.num_bins

    def thresholds(self) -> Tensor:
        """Return the bounds of all bins, float64 (K + 1,), in metres."""
        steps = torch.arange(self.num_bins + 1, dtype=torch.float64)
        return (math.log(self.min_depth) + self.step * steps).exp()

    def encode(self, depth: Tensor) -> Tensor:
        """Return the labels of depths.

        Args:
            depth: Of any shape, positive and finite, in metres.

        Returns:
            int64, from 0 to K - 1.
        """
        wide = depth.to(accumulation_dtype(depth.dtype))
        labels = ((wide.log() - math.log(self.min_depth)) / self.step).floor().long()
        return labels.clamp(0, self.num_bins - 1)

    def decode(self, labels: Tensor) -> Tensor:
        """Return the depths in the middles of bins.

        Args:
            labels: Of any shape, integers; those above K - 1 are the last.

        Returns:
            float32, in metres.
        """
        middles = labels.clamp(0, self.num_bins - 1).float() + 0.5
        return (math.log(self.min_depth) + self.step * middles).exp()
