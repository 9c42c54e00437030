"""Pixel decoders of MaskFormer with guided upsampling."""

from collections.abc import Sequence

from mmdet.models.layers import PixelDecoder, TransformerEncoderPixelDecoder
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..upsamplers import GuidedHost, build_steps
from ..upsamplers.top_down import level_steps


class GuidedSteps(GuidedHost):
    """Mix-in for a pixel decoder: ``x = output_conv(guide + up(x, guide))`` at every step.

    The guide is the lateral convolution, with its norm, of the backbone's feature, and x the output
    of the step before. Every step has an upsampler of its own, in ``upsamplers`` under the name of
    its step: the level that is upsampled and the level that guides, where c1 is the first of the
    backbone's features. All other keys of the state dict and all other arguments are the pixel
    decoder's.

    Args:
        *args: The pixel decoder's arguments.
        upsample_cfg: Config of the upsamplers, with a ``type``.
        step_cfgs: Name of a step, to the options that differ there. Default: none.
        **kwargs: The pixel decoder's arguments.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict.
        ValueError: Unknown upsampler or step.
    """

    def __init__(
        self,
        *args: object,
        upsample_cfg: dict | None = None,
        step_cfgs: dict | None = None,
        **kwargs: object,
    ):
        super().__init__(*args, **kwargs)
        steps = level_steps(len(self.lateral_convs) + 1, 1, self.mask_feature.in_channels)
        self.upsamplers = build_steps(upsample_cfg, step_cfgs, steps)

    def init_weights(self) -> None:
        """Initialize the pixel decoder, and the upsamplers, which it does not know of."""
        super().init_weights()
        self.upsamplers.init_weights()

    def _climb(self, x: Tensor, feats: Sequence[Tensor]) -> list[Tensor]:
        """Take all steps; returns ``x`` and the output of each step, coarse to fine."""
        outs = [x]
        levels = reversed(range(len(self.lateral_convs)))
        for i, upsampler in zip(levels, self.upsamplers.values(), strict=True):
            guide = self.lateral_convs[i](feats[i])
            outs.append(self.output_convs[i](guide + upsampler(outs[-1], guide)))
        return outs


class _PassesForPixelDecoder(type(PixelDecoder)):
    """Let ``type(decoder) == PixelDecoder`` hold for decoders of a sub-class.

    ``MaskFormerHead`` asks that to learn whether the memory is the backbone's feature and must be
    projected to the width of the transformer decoder. The memory of `GuidedPixelDecoder` is, and
    without this the head would leave the projection, and its weights in a checkpoint, out.
    """

    def __eq__(cls, other: object) -> bool:
        return other is PixelDecoder or super().__eq__(other)

    __hash__ = type(PixelDecoder).__hash__


@MODELS.register_module()
class GuidedPixelDecoder(GuidedSteps, PixelDecoder, metaclass=_PassesForPixelDecoder):
    """mmdetection's ``PixelDecoder`` that upsamples with ``upsample_cfg``.

    It takes the arguments of ``PixelDecoder``, and those of `GuidedSteps`. Four levels make three
    steps, ``'c4_c3'``, ``'c3_c2'`` and ``'c2_c1'``. With ``type='nearest'`` it returns what
    ``PixelDecoder`` returns.
    """

    replaces = 'PixelDecoder'

    def forward(
        self, feats: Sequence[Tensor], batch_img_metas: list[dict]
    ) -> tuple[Tensor, Tensor]:
        """Compute the features of the masks and the memory of the transformer decoder.

        Args:
            feats: The backbone's features (N, C_i, H_i, W_i), fine to coarse.
            batch_img_metas: Not used.

        Returns:
            Mask features (N, out_channels, H_1, W_1), and the memory, which is the coarsest of
            ``feats``.
        """
        x = self.last_feat_conv(feats[-1])
        return self.mask_feature(self._climb(x, feats)[-1]), feats[-1]


class _Overlay:
    """A module's attributes, some of them replaced."""

    def __init__(self, module: nn.Module, attributes: dict[str, object]):
        self.module = module
        self.attributes = attributes

    def __getattr__(self, name: str) -> object:
        if name in self.attributes:
            return self.attributes[name]
        return getattr(self.module, name)


def forward_above_steps(
    stock: type[nn.Module], decoder: nn.Module, *inputs: object, **attributes: object
) -> tuple:
    """Run the part of a pixel decoder's forward that comes before its first step, the encoder.

    The stock forward is one function, encoder and steps. It runs here on the coarsest levels alone,
    as that of a decoder which has no step and hands out its last feature unchanged.

    Args:
        stock: mmdetection's class of the decoder.
        decoder: The decoder.
        *inputs: Arguments of the forward.
        **attributes: Attributes of the decoder that make it one without steps.

    Returns:
        What the stock forward returns, with its last feature in place of the mask features.
    """
    attributes['mask_feature'] = nn.Identity()
    return stock.forward(_Overlay(decoder, attributes), *inputs)


@MODELS.register_module()
class GuidedTransformerEncoderPixelDecoder(GuidedSteps, TransformerEncoderPixelDecoder):
    """mmdetection's ``TransformerEncoderPixelDecoder`` that upsamples with ``upsample_cfg``.

    It takes the arguments of ``TransformerEncoderPixelDecoder``, and those of `GuidedSteps`. Four
    levels make three steps, ``'c4_c3'``, ``'c3_c2'`` and ``'c2_c1'``. With ``type='nearest'`` it
    returns what ``TransformerEncoderPixelDecoder`` returns.
    """

    replaces = 'TransformerEncoderPixelDecoder'

    def forward(
        self, feats: Sequence[Tensor], batch_img_metas: list[dict]
    ) -> tuple[Tensor, Tensor]:
        """Compute the features of the masks and the memory of the transformer decoder.

        Args:
            feats: The backbone's features (N, C_i, H_i, W_i), fine to coarse.
            batch_img_metas: Meta information of every image.

        Returns:
            Mask features (N, out_channels, H_1, W_1), and the memory (N, feat_channels, h, w),
            which is the encoder's output at the size of the coarsest of ``feats``.
        """
        x, memory = forward_above_steps(
            TransformerEncoderPixelDecoder, self, feats[-1:], batch_img_metas, num_inputs=1
        )
        return self.mask_feature(self._climb(x, feats)[-1]), memory
