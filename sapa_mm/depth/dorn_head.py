"""DORN's head: scene understanding and ordinal regression, decoded by clusters behind HCResNet."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import Sequential
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_positive_int
from ..segmentation.clustered_features import ClusteredFeatures
from .depth_head import DepthHead
from .ordinal_loss import OrdinalRegressionLoss, ordinal_logits
from .sid import SpacingIncreasingDiscretization


def conv_relu(
    in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1
) -> Sequential:
    """Return a convolution with bias that keeps the size, and a ReLU."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation)
    return Sequential(conv, nn.ReLU())


class FullImageEncoder(Sequential):
    """Average pooling, a fully connected layer and a 1x1 convolution: one vector an image.

    Args:
        in_channels: Channels of the feature.
        channels: Width of the result.
        feature_size: (H, W) of the feature, which fixes the fully connected layer.
        pool_size: Side and stride of the pooling's windows; the last are cut at the border.
        dropout_ratio: Share of the pooled values that training drops.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        feature_size: Sequence[int],
        pool_size: int,
        dropout_ratio: float,
    ):
        height, width = (-(-side // pool_size) for side in feature_size)
        super().__init__(
            nn.AvgPool2d(pool_size, ceil_mode=True),
            nn.Dropout(dropout_ratio),
            nn.Flatten(),
            nn.Linear(in_channels * height * width, channels),
            nn.ReLU(),
            nn.Unflatten(1, (channels, 1, 1)),
            conv_relu(channels, channels),
        )


def with_bounds(loss: Mapping, bounds: Mapping) -> dict:
    """Return the config of a loss, of an ordinal one with the bounds of depth.

    Raises:
        ValueError: It has others, by which what is learnt would not be what is decoded.
    """
    kind = loss['type'] if isinstance(loss['type'], type) else MODELS.get(loss['type'])
    if not (isinstance(kind, type) and issubclass(kind, OrdinalRegressionLoss)):
        return dict(loss)
    for name, bound in bounds.items():
        if loss.get(name, bound) != bound:
            raise ValueError(
                f"loss_decode: expected no {name} or the head's, {bound}, got {loss[name]}"
            )
    return {**loss, **bounds}


@MODELS.register_module()
class DORNHead(DepthHead):
    r"""DORN's head (Fu et al., 2018), and HCDORN's (HC, Suzuki, 2021).

    Scene understanding joins a full-image encoder, copied to every pixel, with four branches, a
    1x1 and three dilated 3x3 convolutions, to the feature :math:`\chi` of ``4 * channels``. A 1x1
    convolution makes of it 2K scores, which bilinear interpolation with aligned corners enlarges
    8 times. Of K thresholds they say whether depth is beyond (`OrdinalRegressionLoss`); depth is
    the middle of the bin that is as many bins away as thresholds are passed.

    Behind an `HCResNet` the head decodes :math:`\chi` by the clusters before it is classified, to
    the size that DORN's backbone has by dilation; that is HCDORN.

    Args:
        in_channels: Channels of the backbone's last feature.
        feature_size: (H, W) of that feature. The full-image encoder takes no other.
        pool_size: Side of the encoder's pooling: 8 in DORN, 2 in HCDORN.
        channels: Width of the encoder and the branches.
        num_bins: K.
        min_depth: The nearest depth, in metres.
        max_depth: The farthest depth, in metres.
        dilations: Of the three dilated branches.
        ratio: How many times the scores are enlarged: (h - 1) becomes (h - 1) * ratio pixels.
        dropout: Share of values that training drops at three places.
        in_index: Index of the feature.
        loss_decode: Config of the loss, or of several. Default: `OrdinalRegressionLoss`, which gets
            this head's depths.
        **kwargs: `DepthHead`'s other arguments.

    Raises:
        TypeError: A number that is none.
        ValueError: A number that is not positive, or depths that are not in order; in ``forward``,
            a feature of another size than ``feature_size``.
    """

    def __init__(
        self,
        in_channels: int = 2048,
        *,
        feature_size: Sequence[int],
        pool_size: int = 8,
        channels: int = 512,
        num_bins: int = 68,
        min_depth: float = 0.698,
        max_depth: float = 10.59,
        dilations: Sequence[int] = (4, 8, 12),
        ratio: int = 8,
        dropout: float = 0.5,
        in_index: int = -1,
        loss_decode: dict | Sequence[dict] | None = None,
        **kwargs: object,
    ):
        for name, value in (('pool_size', pool_size), ('channels', channels), ('ratio', ratio)):
            check_positive_int(name, value)
        if len(feature_size) != 2:
            raise ValueError(f'feature_size: expected (H, W), got {feature_size!r}')
        for side in feature_size:
            check_positive_int('feature_size', side)
        bins = SpacingIncreasingDiscretization(min_depth, max_depth, num_bins)
        losses = loss_decode or dict(type='OrdinalRegressionLoss')
        bounds = dict(min_depth=min_depth, max_depth=max_depth)
        if isinstance(losses, Mapping):
            losses = with_bounds(losses, bounds)
        else:
            losses = [with_bounds(loss, bounds) for loss in losses]
        kwargs.setdefault('init_cfg', dict(type='Kaiming', layer=['Conv2d', 'Linear']))
        super().__init__(
            in_channels,
            channels,
            loss_decode=losses,
            max_depth=max_depth,
            in_index=in_index,
            **kwargs,
        )
        self.bins = bins
        self.feature_size = tuple(feature_size)
        self.ratio = ratio
        self.full_image = FullImageEncoder(in_channels, channels, feature_size, pool_size, dropout)
        self.branches = nn.ModuleList(
            Sequential(conv_relu(in_channels, channels, *layer), conv_relu(channels, channels))
            for layer in ((1, 1), *((3, dilation) for dilation in dilations))
        )
        joined = channels * (1 + len(self.branches))
        self.fusion = Sequential(nn.Dropout(dropout), conv_relu(joined, 4 * channels))
        self.classifier = Sequential(nn.Dropout(dropout), nn.Conv2d(4 * channels, 2 * num_bins, 1))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the scores.

        Args:
            inputs: The backbone's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            (N, 2K, (h - 1) * ratio + 1, (w - 1) * ratio + 1), with (h, w) the feature's size, or of
            what it is decoded to.

        Raises:
            ValueError: A feature of another size than ``feature_size``.
        """
        x = self._transform_inputs(inputs)
        size = tuple(x.shape[2:])
        if size != self.feature_size:
            levels = len(inputs.assignments) if isinstance(inputs, ClusteredFeatures) else 0
            stride = self.ratio * 2**levels
            height, width = ((side - 1) * stride + 1 for side in self.feature_size)
            raise ValueError(
                f'inputs: expected a feature of {self.feature_size}, for which the full-image '
                f'encoder is made, as images of {height} x {width} pixels give it, got {size}: '
                'resize or crop them, or give another feature_size'
            )
        whole = self.full_image(x).expand(-1, -1, *size)
        x = self.fusion(torch.cat([whole, *(branch(x) for branch in self.branches)], dim=1))
        if isinstance(inputs, ClusteredFeatures):
            x = inputs.decode(x)
        scores = self.classifier(x)
        larger = tuple((side - 1) * self.ratio + 1 for side in scores.shape[2:])
        return F.interpolate(scores, larger, mode='bilinear', align_corners=True)

    def to_depth(self, output: Tensor) -> Tensor:
        """Count the thresholds that are passed, and decode.

        Args:
            output: (N, 2K, H, W).

        Returns:
            (N, 1, H, W), float32, in metres.
        """
        passed = (ordinal_logits(output) > 0).sum(dim=1, keepdim=True)
        return self.bins.decode(passed)
