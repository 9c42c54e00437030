"""ResNet that clusters its features softly wherever it halves their size."""

import math
from collections.abc import Mapping

from mmengine.model import ModuleDict, Sequential
from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..ops.checks import check_choice
from ..upsamplers.soft_clustering import SoftClustering
from .clustered_features import ClusteredFeatures, check_levels

SAMPLING_BRANCHES = ('identity', 'residual', 'block')
DOWNSAMPLINGS = ('conv', 'dcn')


def _deform(layer: nn.Module) -> nn.Module:
    """Return a modulated deformable convolution for one of stride 2; else the layer itself."""
    if not isinstance(layer, nn.Conv2d) or layer.stride != (2, 2):
        return layer
    # This needs mmcv's compiled operators, as nothing else here does.
    from .deform_conv import DeformConv

    return DeformConv(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size[0],
        stride=2,
        padding=layer.padding[0],
        bias=False,
    )


def _deform_block(block: nn.Module) -> None:
    """Let a residual block halve the size by modulated deformable convolutions."""
    for name, layer in list(block.named_children()):
        if name != 'downsample':
            setattr(block, name, _deform(layer))
    if block.downsample is not None:
        # mmengine's Sequential, unlike torch's, passes init_weights on, which zeroes the offsets.
        block.downsample = Sequential(*map(_deform, block.downsample))


@MODELS.register_module()
class HCResNet(ResNet):
    r"""ResNet of output stride 32 whose downsampling assigns points to clusters.

    Where a stage halves the size, its input is the points x and what its first block makes of them
    the clusters s of a `SoftClustering`. Nothing in the ResNet depends on it; the heads may decode
    by it what they computed on the coarse map (HC: Implicit Integration of Superpixel Segmentation
    into Fully Convolutional Networks, Suzuki, 2021).

    Args:
        depth: 18, 34, 50, 101 or 152.
        levels: How many stages cluster, from the last one up: 1 is stride 16 to 32 in the fourth
            stage, 2 adds 8 to 16, 3 adds 4 to 8 and 4 adds 2 to 4, from the stem's output to the
            first stage's first block. 0 is the plain ResNet.
        sampling_branch: The clusters are what the first block's shortcut gives (``'identity'``),
            what the residual branch gives (``'residual'``), or their sum after its ReLU
            (``'block'``).
        downsampling: In the stages that cluster, what halves the size: strided convolutions
            (``'conv'``) or modulated deformable ones (``'dcn'``, DCNv2), in the block's 3x3
            convolution and in the shortcut (not in that of a ResNetV1d, which pools). Published
            weights load; the offsets start at 0 and the modulation, as mmcv's does, at 0.5.
        clustering_cfg: Options of `SoftClustering`. Default: the paper's, 64 channels, K = 3,
            cosine similarity, temperature 0.07.
        deep_stem: Three 3x3 convolutions in place of one 7x7, as in a ResNetV1c. With ``avg_down``
            too it is a ResNetV1d.
        **kwargs: ``ResNet``'s other arguments.

    Raises:
        TypeError: ``levels`` no int, ``clustering_cfg`` no dict or with an unknown option.
        ValueError: An unknown choice, more levels than stages, a stage that has to halve the size
            and does not, ``with_cp`` together with a branch other than ``'block'``, plugins
            together with ``'residual'``, or the caffe style together with ``'dcn'``.
    """

    def __init__(
        self,
        depth: int,
        levels: int = 2,
        sampling_branch: str = 'block',
        downsampling: str = 'conv',
        clustering_cfg: dict | None = None,
        deep_stem: bool = True,
        **kwargs: object,
    ):
        check_levels(levels)
        check_choice('sampling_branch', sampling_branch, SAMPLING_BRANCHES)
        check_choice('downsampling', downsampling, DOWNSAMPLINGS)
        clustering_cfg = {} if clustering_cfg is None else clustering_cfg
        if not isinstance(clustering_cfg, Mapping):
            raise TypeError(f'clustering_cfg: expected a dict, got {clustering_cfg!r}')
        super().__init__(depth, deep_stem=deep_stem, **kwargs)
        if levels > self.num_stages:
            raise ValueError(f'levels: expected an int from 0 to {self.num_stages}, got {levels}')
        if self.with_cp and sampling_branch != 'block':
            # The inside of a checkpointed block is not there for others to use.
            raise ValueError(
                f"sampling_branch: expected 'block' with with_cp=True, got {sampling_branch!r}"
            )
        if self.plugins and sampling_branch == 'residual':
            raise ValueError(
                "sampling_branch: expected 'block' or 'identity' with plugins, got 'residual'"
            )
        if downsampling == 'dcn' and self.style != 'pytorch':
            raise ValueError(
                f"style: expected 'pytorch' with downsampling='dcn', got {self.style!r}"
            )
        self.levels = levels
        self.sampling_branch = sampling_branch
        clusterings = {}
        for stage in range(self.num_stages - levels, self.num_stages):
            # The first stage's input has been halved by the max pooling.
            stride, dilation = self.strides[stage] * (1 if stage else 2), self.dilations[stage]
            if stride != 2 or dilation != 1:
                raise ValueError(
                    f'strides, dilations: expected to halve the size in stage {stage + 1}, which '
                    f'clusters, got strides {self.strides} and dilations {self.dilations}'
                )
            name = self.res_layers[stage]
            width = self.base_channels * 2**stage * self.block.expansion
            points = width // 2 if stage else self.stem_channels
            clusterings[name] = SoftClustering(points, width, **clustering_cfg)
            if downsampling == 'dcn':
                _deform_block(getattr(self, name)[0])
        self.clusterings = ModuleDict(clusterings)
        self._freeze_stages()

    @property
    def cluster_strides(self) -> tuple[int, ...]:
        """Return the clusters' strides in the image, in pixels, fine to coarse."""
        stages = range(self.num_stages - self.levels, self.num_stages)
        return tuple(4 * math.prod(self.strides[: stage + 1]) for stage in stages)

    def _sample(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run a stage's first block.

        Returns:
            Its output, and the clusters as ``sampling_branch`` says.
        """
        if self.sampling_branch == 'block':
            out = block(x)
            return out, out
        if self.sampling_branch == 'identity':
            layer = block.downsample
            if layer is None:
                return block(x), x
        else:
            layer = getattr(block, 'norm3', None) or block.norm2
        sampled = []

        # The block adds to the residual branch in place.
        def keep(module: nn.Module, args: tuple, out: Tensor) -> None:
            sampled.append(out.clone())

        with layer.register_forward_hook(keep):
            out = block(x)
        return out, sampled[0]

    def forward(self, x: Tensor) -> ClusteredFeatures:
        """Compute the features and the assignments.

        Args:
            x: Images (N, in_channels, height, width).

        Returns:
            Features (N, C_i, H_i, W_i) of the stages ``out_indices``, fine to coarse, with
            ``levels`` assignments, fine to coarse.
        """
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        features, assignments = [], []
        points, x = x, self.maxpool(x)
        for stage, name in enumerate(self.res_layers):
            first, *rest = getattr(self, name)
            if name in self.clusterings:
                points = x if stage else points
                x, clusters = self._sample(first, x)
                assignments.append(self.clusterings[name](points, clusters))
            else:
                x = first(x)
            for block in rest:
                x = block(x)
            if stage in self.out_indices:
                features.append(x)
        return ClusteredFeatures(features, assignments)
