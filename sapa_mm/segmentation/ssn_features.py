"""The network of SSN: features of pixels by which they are grouped."""

from collections.abc import Mapping

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_choice, check_positive_int
from ..upsamplers.soft_clustering import SoftClustering

SEEDS = ('pool', 'block')
# Convolutions start this small, so that training starts from clustering the plain pixels.
INIT_STD = 0.001


class SSNFeatures(BaseModule):
    """Learn features of pixels from their colour and position.

    Three blocks of two 3 x 3 convolutions with BN and ReLU at strides 1, 2 and 4, of which the
    second and the third begin with a 3 x 3 max pooling; their outputs and the input, brought to the
    image's size, are fused by a 3 x 3 convolution with ReLU, and the input is appended (SSN:
    Superpixel Sampling Networks, Jampani et al., ECCV 2018). With ``clustering_cfg`` the two
    poolings cluster: what comes back to the image's size is decoded by the assignments where SSN
    interpolates bilinearly (HC: Implicit Integration of Superpixel Segmentation into Fully
    Convolutional Networks, Suzuki, 2021, section 4.3).

    Args:
        in_channels: Channels of the input.
        base_channels: Channels of the blocks.
        feature_channels: Channels that are learnt.
        clustering_cfg: Options of `SoftClustering`. Default: none, bilinear interpolation.
        seeds: The clusters are what the pooling gives (``'pool'``) or what its block makes of it
            (``'block'``). It matters with ``clustering_cfg`` alone.
        init_cfg: As in every mmengine module. Default: normal of standard deviation 0.001.

    Raises:
        TypeError: A number of channels that is no int, or ``clustering_cfg`` no dict or with an
            unknown option.
        ValueError: A number of channels that is not positive, or unknown seeds.
    """

    def __init__(
        self,
        in_channels: int = 5,
        base_channels: int = 64,
        feature_channels: int = 15,
        clustering_cfg: Mapping | None = None,
        seeds: str = 'pool',
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        check_positive_int('in_channels', in_channels)
        check_positive_int('base_channels', base_channels)
        check_positive_int('feature_channels', feature_channels)
        check_choice('seeds', seeds, SEEDS)
        if clustering_cfg is not None and not isinstance(clustering_cfg, Mapping):
            raise TypeError(f'clustering_cfg: expected a dict or None, got {clustering_cfg!r}')
        self.seeds = seeds
        widths = (in_channels, base_channels, base_channels)
        self.blocks = nn.ModuleList(self._block(width, base_channels) for width in widths)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.clusterings = nn.ModuleList()
        if clustering_cfg is not None:
            self.clusterings.extend(
                SoftClustering(base_channels, **clustering_cfg) for _ in range(2)
            )
        fused = in_channels + 3 * base_channels
        self.fuse = nn.Conv2d(fused, feature_channels, 3, padding=1)
        self._start_small()

    @staticmethod
    def _block(in_channels: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            *(
                ConvModule(width, channels, 3, padding=1, norm_cfg=dict(type='BN'))
                for width in (in_channels, channels)
            )
        )

    def _start_small(self) -> None:
        """Initialize the convolutions; those of clusterings are initialized by themselves."""
        convs = [unit.conv for block in self.blocks for unit in block]
        for conv in (*convs, self.fuse):
            nn.init.normal_(conv.weight, std=INIT_STD)
        nn.init.zeros_(self.fuse.bias)

    def init_weights(self) -> None:
        """Initialize again; then what ``init_cfg`` says."""
        self._start_small()
        super().init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features.

        Args:
            x: Pixels (N, in_channels, H, W).

        Returns:
            (N, feature_channels + in_channels, H, W), the input last, in float32 at least.
        """
        size = tuple(x.shape[2:])
        fine = self.blocks[0](x)
        pooled = self.pool(fine)
        middle = self.blocks[1](pooled)
        pooled_again = self.pool(middle)
        coarse = self.blocks[2](pooled_again)
        if self.clusterings:
            by_block = self.seeds == 'block'
            to_middle = self.clusterings[0](fine, middle if by_block else pooled)
            to_coarse = self.clusterings[1](middle, coarse if by_block else pooled_again)
            coarse = to_middle.decode(to_coarse.decode(coarse))
            middle = to_middle.decode(middle)
        else:
            middle, coarse = (
                F.interpolate(feature, size, mode='bilinear', align_corners=False)
                for feature in (middle, coarse)
            )
        joined = torch.cat([x.to(fine.dtype), fine, middle, coarse], 1)
        learnt = self.fuse(joined).relu()
        # Positions of a large image need more digits than half precision has.
        return torch.cat([learnt.to(x.dtype), x], 1)
