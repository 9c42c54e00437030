"""DORN's loss: of every threshold, whether depth is beyond it."""

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_positive
from ..ops.layout import accumulation_dtype
from .sid import SpacingIncreasingDiscretization


def ordinal_logits(output: Tensor) -> Tensor:
    """Return z_k = y_(2k+1) - y_(2k), the logit of "depth is beyond the end of bin k".

    Args:
        output: Pairs of scores y, (N, 2K, H, W).

    Returns:
        (N, K, H, W).
    """
    return output[:, 1::2] - output[:, ::2]


@MODELS.register_module()
class OrdinalRegressionLoss(nn.Module):
    r"""Ordinal regression of depth (DORN, Fu et al., 2018).

    With l for a pixel's label (`SpacingIncreasingDiscretization`) and z for its logits
    (`ordinal_logits`), the loss is the mean over pixels of

    .. math::
        \sum_{k < l} \ln(1 + e^{-z_k}) + \sum_{k \ge l} \ln(1 + e^{z_k}).

    It is computed in float32, or float64 if the output is. Without a known pixel it is 0, with a
    gradient of 0.

    Args:
        min_depth: See `SpacingIncreasingDiscretization`. `DORNHead` gives its own.
        max_depth: See `SpacingIncreasingDiscretization`. `DORNHead` gives its own.
        loss_weight: Factor of the loss.
        loss_name: Name in the log.

    Raises:
        TypeError: A number that is none.
        ValueError: A number that is not positive, or bounds that are not in order.
    """

    def __init__(
        self,
        min_depth: float = 0.698,
        max_depth: float = 10.59,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ordinal',
    ):
        super().__init__()
        SpacingIncreasingDiscretization(min_depth, max_depth)
        check_positive('loss_weight', loss_weight)
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(self, output: Tensor, depth: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            output: Pairs of scores (N, 2K, H, W).
            depth: True depth (N, 1, H, W), in metres; what is not positive, or infinite or NaN, is
                unknown.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: Two sizes, or an odd number of scores.
        """
        n, scores, *size = output.shape
        if scores % 2 or depth.shape != (n, 1, *size):
            raise ValueError(
                f'output: expected pairs of scores, (N, 2K, H, W), for depth of '
                f'{tuple(depth.shape)}, got {tuple(output.shape)}'
            )
        with torch.autocast(output.device.type, enabled=False):
            known = (depth[:, 0] > 0) & depth[:, 0].isfinite()
            # What is unknown goes no further, and labels are compared, not written out for every k.
            output = output.to(accumulation_dtype(output.dtype))
            logits = ordinal_logits(output).movedim(1, -1)[known]
            bins = SpacingIncreasingDiscretization(self.min_depth, self.max_depth, scores // 2)
            labels = bins.encode(depth[:, 0][known])
            beyond = torch.arange(scores // 2, device=logits.device) < labels[:, None]
            losses = F.softplus(torch.where(beyond, -logits, logits))
            return self.loss_weight * losses.sum() / max(len(labels), 1)
