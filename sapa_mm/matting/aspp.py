"""Atrous spatial pyramid pooling of the matting network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_positive_int
from .backbone import SLOPE, conv_norm_act


class PooledNorm(nn.BatchNorm2d):
    """Batch normalization of one value a channel and image.

    A batch of one image has nothing to take statistics of: it is normalized by those that were
    gathered before.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, 1, 1)."""
        if self.training and len(x) == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class MattingASPP(nn.Module):
    """A 1x1 convolution, dilated depthwise separable ones and the image's average, joined.

    Every convolution has batch normalization and leaky ReLU, the depthwise ones as well.

    Args:
        channels: Channels of what it gets and of what it gives.
        dilations: Dilations of the depthwise convolutions.
        dropout: Probability that a value of the result is left out in training.

    Raises:
        TypeError: A number that is no int.
        ValueError: A number that is not positive.
    """

    def __init__(self, channels: int, dilations: Sequence[int] = (6, 12, 18), dropout: float = 0.5):
        super().__init__()
        check_positive_int('channels', channels)
        for dilation in dilations:
            check_positive_int('dilations', dilation)
        self.point = conv_norm_act(channels, channels, 1)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                conv_norm_act(channels, channels, dilation=dilation, groups=channels),
                conv_norm_act(channels, channels, 1),
            )
            for dilation in dilations
        )
        self.pooled = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            PooledNorm(channels),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        self.join = conv_norm_act((2 + len(dilations)) * channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, channels, H, W) of (N, channels, H, W)."""
        average = self.pooled(x.mean((2, 3), keepdim=True)).expand_as(x)
        parts = [self.point(x), *(layer(x) for layer in self.dilated), average]
        return self.dropout(self.join(torch.cat(parts, 1)))
