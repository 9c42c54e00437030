"""Pixel decoder of Mask2Former with guided upsampling."""

from collections.abc import Sequence

from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmdet.models.task_modules import MlvlPointGenerator
from mmdet.registry import MODELS
from torch import Tensor

from .pixel_decoder import GuidedSteps, forward_above_steps


@MODELS.register_module()
class GuidedMSDeformAttnPixelDecoder(GuidedSteps, MSDeformAttnPixelDecoder):
    """mmdetection's ``MSDeformAttnPixelDecoder`` that upsamples with ``upsample_cfg``.

    It takes the arguments of ``MSDeformAttnPixelDecoder``, and those of `GuidedSteps`. There is a
    step for every level that the deformable encoder leaves out: the encoder takes three of
    Mask2Former's four levels, and the step is ``'c2_c1'``. With ``type='bilinear'`` it returns what
    ``MSDeformAttnPixelDecoder`` returns; like that one, it needs backbone features of one width at
    the left-out levels where there are several.
    """

    replaces = 'MSDeformAttnPixelDecoder'

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute the features of the masks and those of the transformer decoder.

        Args:
            feats: The backbone's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            Mask features (N, out_channels, H_1, W_1), and ``num_outs`` features
            (N, feat_channels, H_i, W_i), coarse to fine.
        """
        levels = self.num_encoder_levels
        strides = self.strides[-levels:]
        _, encoded = forward_above_steps(
            MSDeformAttnPixelDecoder,
            self,
            feats[-levels:],
            num_input_levels=levels,
            num_outs=levels,
            strides=strides,
            point_generator=MlvlPointGenerator(strides),
        )
        outs = encoded[:-1] + self._climb(encoded[-1], feats)
        return self.mask_feature(outs[-1]), outs[: self.num_outs]
