"""The residual encoder of the matting network."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops.checks import check_bool, check_positive_int

SLOPE = 0.01
#: Halves a feature: it gets the place, 0 for the finest, and the feature.
Downsample = Callable[[int, Tensor], Tensor]


def conv_norm_act(
    in_channels: int, out_channels: int, kernel_size: int = 3, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Build a convolution that keeps the size, batch normalization and leaky ReLU.

    Args:
        in_channels: Channels of what it gets.
        out_channels: Channels of what it gives.
        kernel_size: Size of the convolution, odd.
        dilation: Its dilation.
        groups: Its groups.
    """
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(SLOPE, inplace=True))


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3 and a shortcut; the keys are those of torchvision's ResNet.

    Args:
        in_channels: Channels of what it gets.
        out_channels: Channels of what it gives. Where they differ, the shortcut is a 1x1
            convolution with batch normalization.
        halves: Whether what it gives has half the size.
        strided: Whether the first convolution halves. Otherwise what is passed as ``pool`` does,
            between the convolutions.
    """

    def __init__(
        self, in_channels: int, out_channels: int, halves: bool = False, strided: bool = False
    ):
        super().__init__()
        stride = 2 if halves else 1
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride if strided else 1, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.LeakyReLU(SLOPE, inplace=True)
        self.downsample = nn.Sequential()
        if halves or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Compute (N, out_channels, h, w) of ``x`` (N, in_channels, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        if pool is not None:
            out = pool(out)
        return self.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class MattingFeatures(NamedTuple):
    """What the encoder gives; C1, C2 and C3 are its ``channels``.

    Attributes:
        guides: The features before they are halved, fine to coarse: C1, C1, C2 and C3 channels at
            strides 1, 2, 4 and 8. Empty where convolutions of stride 2 halve.
        skips: What is handed to the decoder, fine to coarse: the input and C1, C1 and C2 channels
            at strides 1, 2, 4 and 8.
        last: C3 channels at stride 16.
    """

    guides: tuple[Tensor, ...]
    skips: tuple[Tensor, ...]
    last: Tensor


@MODELS.register_module()
class MattingResNet(BaseModule):
    """ResNet-34 down to stride 16, whose stem keeps the size and whose halvings can be replaced.

    The encoder of Learning Affinity-Aware Upsampling for Deep Image Matting (Dai et al., CVPR
    2021): a convolution of 7 x 7, and three stages of basic blocks with leaky ReLU. It halves after
    the stem, before the first stage, and within the first block of the two others, where the
    features are the guides of the upsamplers.

    The state dict has the keys of torchvision's ResNet, whose weights load by
    ``init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet34')``: the stem's of three
    channels are the first three of the four here, and the others are 0. What it has beyond the
    blocks here is left out.

    Args:
        channels: Channels C1, C2, C3 of the stages. Default: those of ResNet-34.
        blocks: Blocks of the stages.
        in_channels: Channels of the input: RGB and trimap.
        strided: Whether the stem, ResNet's own max pooling and the first convolution of the second
            and the third stage halve, as in ResNet, and there are no features before halving.
        norm_eval: Whether batch normalizations keep their running statistics in training.
        init_cfg: As in every mmengine module. Default: none.

    Raises:
        TypeError: A number that is no int, or a switch that is no bool.
        ValueError: A number that is not positive, or other than three stages.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256),
        blocks: Sequence[int] = (3, 4, 4),
        in_channels: int = 4,
        strided: bool = False,
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        for name, numbers in (('channels', channels), ('blocks', blocks)):
            if not isinstance(numbers, Sequence):
                raise TypeError(f'{name}: expected a sequence of ints, got {numbers!r}')
            if len(numbers) != 3:
                raise ValueError(f'{name}: expected one for each of 3 stages, got {numbers}')
            for number in numbers:
                check_positive_int(name, number)
        check_positive_int('in_channels', in_channels)
        check_bool('strided', strided)
        check_bool('norm_eval', norm_eval)
        self.channels = tuple(channels)
        self.strided = strided
        self.norm_eval = norm_eval
        width = channels[0]
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2 if strided else 1, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.LeakyReLU(SLOPE, inplace=True)
        if strided:
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        for stage, (before, out, number) in enumerate(
            zip([width, *channels], channels, blocks, strict=False), start=1
        ):
            first = BasicBlock(before, out, halves=stage > 1, strided=strided)
            layers = [first, *(BasicBlock(out, out) for _ in range(number - 1))]
            setattr(self, f'layer{stage}', nn.ModuleList(layers))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Load weights; of a stem without the trimap's channel, with zeros for that."""
        key = f'{prefix}conv1.weight'
        weight, missing = state_dict.get(key), self.conv1.in_channels - 3
        if weight is not None and weight.dim() == 4 and weight.shape[1] == 3 and missing > 0:
            zeros = weight.new_zeros(weight.shape[0], missing, *weight.shape[2:])
            state_dict[key] = torch.cat([weight, zeros], 1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> 'MattingResNet':
        """Set the mode; with ``norm_eval`` batch normalizations stay in evaluation."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor, downsample: Downsample | None = None) -> MattingFeatures:
        """Compute the features.

        Args:
            x: (N, in_channels, H, W).
            downsample: Halves the four guides. Not used if convolutions of stride 2 do.

        Returns:
            The features. Sizes are rounded up.

        Raises:
            ValueError: No ``downsample`` where one is needed.
        """
        stem = self.relu(self.bn1(self.conv1(x)))
        if self.strided:
            first = self._stage(1, self.maxpool(stem))
            second = self._stage(2, first)
            return MattingFeatures((), (x, stem, first, second), self._stage(3, second))
        if downsample is None:
            raise ValueError('downsample: expected what halves the guides, got None')
        guides: list[Tensor] = []

        def pool(guide: Tensor) -> Tensor:
            guides.append(guide)
            return downsample(len(guides) - 1, guide)

        half = pool(stem)
        first = self._stage(1, pool(half))
        second = self._stage(2, first, pool)
        last = self._stage(3, second, pool)
        return MattingFeatures(tuple(guides), (x, half, first, second), last)

    def _stage(
        self, number: int, x: Tensor, pool: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        first, *others = self.get_submodule(f'layer{number}')
        x = first(x, pool)
        for block in others:
            x = block(x)
        return x
