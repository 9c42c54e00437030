"""ResNet that also returns its stem, as decoders that reach half the image's size need it."""

from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS
from torch import Tensor

from ..ops.checks import check_bool


@MODELS.register_module()
class StemResNet(ResNet):
    """mmseg's ``ResNet`` with the stem's output, after its ReLU, before the stages'.

    The state dict has ``ResNet``'s keys, so published weights load, and the stages' features are
    ``ResNet``'s.

    Args:
        depth: 18, 34, 50, 101 or 152.
        freeze_first_conv: Whether the stem's first convolution keeps its weights.
        freeze_norm_affine: Whether the affine terms of the main path's normalization layers, all
            but those of shortcuts, keep their values. Their running statistics do not.
        **kwargs: ``ResNet``'s other arguments. ``out_indices`` are indices of stages; the stem is
            always there.

    Raises:
        TypeError: ``freeze_first_conv`` or ``freeze_norm_affine`` is not True or False.
    """

    def __init__(
        self,
        depth: int,
        freeze_first_conv: bool = False,
        freeze_norm_affine: bool = False,
        **kwargs: object,
    ):
        check_bool('freeze_first_conv', freeze_first_conv)
        check_bool('freeze_norm_affine', freeze_norm_affine)
        super().__init__(depth, **kwargs)
        if freeze_first_conv:
            first = self.stem[0] if self.deep_stem else self.conv1
            first.requires_grad_(False)
        if freeze_norm_affine:
            blocks = [block for name in self.res_layers for block in getattr(self, name)]
            norms = [
                getattr(block, name)
                for block in blocks
                for name in ('norm1', 'norm2', 'norm3')
                if hasattr(block, name)
            ]
            # Convolutions and normalizations alternate in the deep stem.
            stem = self.stem[1::3] if self.deep_stem else [self.norm1]
            for norm in (*stem, *norms):
                norm.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x: Images (N, in_channels, H, W).

        Returns:
            The stem's (N, stem_channels, H / 2, W / 2) and those of the stages ``out_indices``,
            fine to coarse; sizes are rounded up.
        """
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        outs = [x]
        x = self.maxpool(x)
        for stage, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)
