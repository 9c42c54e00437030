"""SegNet's encoders, which hand on the features before their poolings."""

from collections.abc import Sequence

from mmcv.cnn import VGG, ConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_kernel_size, check_positive_int


@MODELS.register_module()
class SegNetVGG(VGG, BaseModule):
    """VGG-16 with batch normalization, all 13 convolutions, as SegNet's encoder.

    It gives the feature before each of the five poolings, which is what an upsampling back to that
    size is guided by, and what the last pooling gives. The poolings are maxima over 2 x 2 pixels
    with sizes rounded up, so that pixel i lies in cell i // 2 at odd sizes, too. The state dict has
    the keys of torchvision's ``vgg16_bn`` without its classifier: those weights load by
    ``init_cfg=dict(type='Pretrained', checkpoint='torchvision://vgg16_bn')``.

    Args:
        init_cfg: As in every mmengine module. Default: convolutions Kaiming normal, batch
            normalizations weight 1 and bias 0.
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None):
        # mmcv's VGG keeps the running statistics of the batch normalizations unless told otherwise.
        super().__init__(16, with_bn=True, ceil_mode=True, bn_eval=False)
        self.init_cfg = init_cfg or [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer='BatchNorm2d'),
        ]

    def init_weights(self, pretrained: None = None) -> None:
        """Initialize as ``init_cfg`` says; mmcv's VGG would ignore it."""
        BaseModule.init_weights(self)

    def train(self, mode: bool = True) -> 'SegNetVGG':
        """Set the mode and return the module, as in PyTorch; mmcv's VGG returns nothing."""
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x: Images (N, 3, H, W).

        Returns:
            Six features of 64, 128, 256, 512, 512 and 512 channels, fine to coarse: those before
            the poolings, of strides 1 to 16, and the pooled one of stride 32. Sizes are rounded up.
        """
        outs = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                outs.append(x)
            x = layer(x)
        return (*outs, x)


@MODELS.register_module()
class SegNetBasic(BaseModule):
    """The small encoder that SegNet's authors compare decoders with (SegNet-Basic).

    A stage is one convolution, batch normalization, ReLU and a maximum over 2 x 2 pixels with sizes
    rounded up. The published network also normalizes the contrast of the image locally, which is
    left to the data preprocessor here.

    Args:
        in_channels: Channels of the images.
        channels: Widths of the stages. Default: those of the published network.
        kernel_size: Size of the convolutions, odd.
        norm_cfg: Config of the normalization. Default: batch normalization.
        init_cfg: As in every mmengine module. Default: convolutions Kaiming normal.

    Raises:
        TypeError: A number that is no int.
        ValueError: A number that is not positive, no stage, or an even ``kernel_size``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 64, 64, 64),
        kernel_size: int = 7,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        check_positive_int('in_channels', in_channels)
        for width in channels:
            check_positive_int('channels', width)
        if not channels:
            raise ValueError(f'channels: expected the width of one stage or more, got {channels}')
        check_kernel_size(kernel_size)
        super().__init__(init_cfg)
        self.stages = nn.ModuleList(
            ConvModule(
                before,
                width,
                kernel_size,
                padding=kernel_size // 2,
                norm_cfg=norm_cfg or dict(type='BN'),
            )
            for before, width in zip([in_channels, *channels[:-1]], channels, strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x: Images (N, in_channels, H, W).

        Returns:
            One feature (N, C_i, H_i, W_i) more than there are stages, fine to coarse: those before
            the poolings, the first of the image's size, and the last pooled one. Sizes are halved
            and rounded up from one to the next.
        """
        outs = []
        for stage in self.stages:
            outs.append(stage(x))
            x = F.max_pool2d(outs[-1], 2, ceil_mode=True)
        return (*outs, x)
