"""SegNet's decoder with any upsampler."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import Sequential
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..ops.checks import check_bool, check_kernel_size, check_positive_int
from ..upsamplers import GuidedHost, build_steps
from ..upsamplers.registration import ModuleDict

VGG_WIDTHS = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))


@MODELS.register_module()
class SegNetHead(GuidedHost, BaseDecodeHead):
    """SegNet's decoder, whose every upsampling is guided by the feature before the pooling.

    It upsamples by 2 as often as the encoder pools, and convolves after each upsampling; nothing of
    the encoder is joined or added, so that what the decoder learns of it comes through the
    upsampling alone (SegNet, Badrinarayanan et al., 2017; SAPA, Lu et al., NeurIPS 2022, Figure 2).
    SegNet itself has ``upsample_cfg=dict(type='MaxUnpooling')``. Use it behind `SegNetVGG` or
    `SegNetBasic`. The upsamplers are in ``upsamplers``, under the name of their step.

    Args:
        in_channels: Channels of the encoder's features, fine to coarse: those before each pooling,
            and the last pooled one.
        upsample_cfg: Config of the upsamplers, with a ``type``.
        step_cfgs: Name of a step to the options that differ there. With `SegNetVGG` the steps are
            ``'c6_c5'``, ``'c5_c4'``, ``'c4_c3'``, ``'c3_c2'`` and ``'c2_c1'``, in the order in
            which they are taken: the level that is upsampled and the level that guides, where c1
            is the first of ``in_channels``. Default: none.
        widths: Widths of the convolutions after each step, in the steps' order. Default: those of
            SegNet, which mirror VGG-16.
        kernel_size: Size of these convolutions, odd.
        cls_kernel_size: Size of the convolution to the classes, odd.
        norm_cfg: Config of the normalization after each but the last. Default: batch normalization.
        activate: Whether a ReLU follows that; SegNet-Basic has none in its decoder.
        dropout_ratio: Probability that the classifier misses a channel.
        **kwargs: Other arguments of mmseg's ``BaseDecodeHead``: ``num_classes``, ``loss_decode``.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict, or an option has the
            wrong type.
        ValueError: Unknown upsampler or step, fewer than two features, another number of steps in
            ``widths``, an even size of a kernel, or channels that an upsampler does not take.
    """

    # mmseg has no SegNet of its own.
    replaces = 'SegNetHead'

    def __init__(
        self,
        in_channels: Sequence[int],
        upsample_cfg: dict,
        step_cfgs: dict | None = None,
        *,
        widths: Sequence[Sequence[int]] = VGG_WIDTHS,
        kernel_size: int = 3,
        cls_kernel_size: int = 3,
        norm_cfg: dict | None = None,
        activate: bool = True,
        dropout_ratio: float = 0.0,
        **kwargs: object,
    ):
        self._check_widths(in_channels, widths)
        check_bool('activate', activate)
        check_kernel_size(kernel_size)
        check_kernel_size(cls_kernel_size, 'cls_kernel_size')
        super().__init__(
            in_channels,
            widths[-1][-1],
            in_index=list(range(len(in_channels))),
            input_transform='multiple_select',
            norm_cfg=norm_cfg or dict(type='BN'),
            act_cfg=dict(type='ReLU') if activate else None,
            dropout_ratio=dropout_ratio,
            **kwargs,
        )
        last = len(in_channels)
        inputs = [in_channels[-1], *(block[-1] for block in widths[:-1])]
        guides = in_channels[-2::-1]
        names = [f'c{level}_c{level - 1}' for level in range(last, 1, -1)]
        self.upsamplers = build_steps(
            upsample_cfg,
            step_cfgs,
            dict(zip(names, zip(inputs, guides, strict=True), strict=True)),
        )
        self.blocks = ModuleDict(
            {
                name: self._block(before, block, kernel_size)
                for name, before, block in zip(names, inputs, widths, strict=True)
            }
        )
        self.conv_seg = nn.Conv2d(
            self.channels, self.out_channels, cls_kernel_size, padding=cls_kernel_size // 2
        )

    @staticmethod
    def _check_widths(in_channels: Sequence[int], widths: Sequence[Sequence[int]]) -> None:
        if len(in_channels) < 2:
            raise ValueError(
                'in_channels: expected those of the features before each pooling and of the last '
                f'pooled one, got {in_channels}'
            )
        if len(widths) != len(in_channels) - 1 or not all(widths):
            raise ValueError(
                f'widths: expected the widths of {len(in_channels) - 1} steps, one less than '
                f'in_channels, got {widths}'
            )
        for block in widths:
            for width in block:
                check_positive_int('widths', width)

    def _block(self, in_channels: int, widths: Sequence[int], kernel_size: int) -> Sequential:
        """Return the convolutions that follow one upsampling."""
        return Sequential(
            *(
                ConvModule(
                    before,
                    width,
                    kernel_size,
                    padding=kernel_size // 2,
                    norm_cfg=self.norm_cfg,
                    act_cfg=self.act_cfg,
                )
                for before, width in zip([in_channels, *widths[:-1]], widths, strict=True)
            )
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the logits.

        Args:
            inputs: The encoder's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            (N, num_classes, H_1, W_1), of the image's size.

        Raises:
            ValueError: Another number of features than ``in_channels`` has.
        """
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'inputs: expected {len(self.in_channels)} features, got {len(inputs)}'
            )
        x = inputs[-1]
        for (name, block), guide in zip(self.blocks.items(), inputs[-2::-1], strict=True):
            x = block(self.upsamplers[name](x, guide))
        return self.cls_seg(x)
