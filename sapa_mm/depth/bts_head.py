"""BTS's decoder with guided upsampling."""

from collections.abc import Sequence

import torch
from mmengine.model import Sequential
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_int
from ..ops.layout import accumulation_dtype
from ..upsamplers import GuidedHost, build_steps
from .depth_head import DepthHead
from .planar_guidance import local_planar_guidance

DILATIONS = (3, 6, 12, 18, 24)


def norm(channels: int, eps: float = 1.1e-5) -> nn.BatchNorm2d:
    """Return the decoder's batch normalization; in the atrous blocks ``eps`` is another."""
    return nn.BatchNorm2d(channels, eps=eps, momentum=0.01)


def conv_elu(in_channels: int, out_channels: int, kernel_size: int = 3) -> Sequential:
    """Return a convolution without bias that keeps the size, and an ELU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return Sequential(conv, nn.ELU())


def atrous_block(in_channels: int, width: int, dilation: int, norm_first: bool) -> Sequential:
    """Return a bottleneck to ``2 * width`` channels and a dilated convolution to ``width``."""
    return Sequential(
        *([norm(in_channels)] if norm_first else []),
        nn.ReLU(),
        nn.Conv2d(in_channels, 2 * width, 1, bias=False),
        norm(2 * width, eps=1e-5),
        nn.ReLU(),
        nn.Conv2d(2 * width, width, 3, padding=dilation, dilation=dilation, bias=False),
    )


def reduction(in_channels: int, first: int, last: int) -> Sequential:
    """Return 1x1 convolutions with ELUs to ``first`` channels, half of them and so on.

    The last with an ELU has 8 to 15 channels; one to ``last`` channels without an ELU follows.
    """
    layers = []
    width = first
    while width >= 8:
        layers.append(conv_elu(in_channels, width, 1))
        in_channels, width = width, width // 2
    return Sequential(*layers, nn.Conv2d(in_channels, last, 1, bias=False))


@MODELS.register_module()
class GuidedBTSHead(GuidedHost, DepthHead):
    r"""BTS's decoder (Lee et al., 2019) whose upsampling is guided by the encoder.

    Four times it upsamples by 2, convolves, and joins the result with the encoder's feature of that
    size, which is the guide of the upsampling (SAPA, Lu et al., NeurIPS 2022, Table 4). At strides
    8, 4 and 2 cells say which planes their pixels see (`local_planar_guidance`). The fifth
    upsampling, to the image's size, has no guide and is nearest. With :math:`m` for ``max_depth``
    and :math:`x` for the last feature, depth is :math:`m\, \sigma(\mathrm{conv}(x))`.

    Use it behind `StemResNet`. The upsamplers are in ``upsamplers``, under the name of their step.

    Args:
        in_channels: Channels of the five features, fine to coarse: strides 2 to 32.
        upsample_cfg: Config of the upsamplers, with a ``type``.
        step_cfgs: Name of a step to the options that differ there. The steps are ``'up5'``,
            ``'up4'``, ``'up3'`` and ``'up2'``, in the order in which they are taken. Default: none.
        bts_size: Width of the decoder, a multiple of 16 of at least 32.
        loss_decode: Config of the loss. Default: `ScaleInvariantLogLoss`.
        **kwargs: `DepthHead`'s other arguments: ``max_depth``.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict, or a number that is none.
        ValueError: Unknown upsampler or step, an upsampler that needs as many channels in its guide
            as in what it upsamples, not five features, or a bad width.
    """

    # mmseg has no BTS of its own.
    replaces = 'GuidedBTSHead'

    def __init__(
        self,
        in_channels: Sequence[int],
        upsample_cfg: dict,
        step_cfgs: dict | None = None,
        *,
        bts_size: int = 512,
        loss_decode: dict | Sequence[dict] | None = None,
        **kwargs: object,
    ):
        check_int('bts_size', bts_size, low=32)
        if bts_size % 16:
            raise ValueError(f'bts_size: expected a multiple of 16, got {bts_size}')
        if len(in_channels) != 5:
            raise ValueError(
                'in_channels: expected five features, as StemResNet gives them, got '
                f'{len(in_channels)}'
            )
        super().__init__(
            in_channels,
            bts_size,
            loss_decode=loss_decode or dict(type='ScaleInvariantLogLoss'),
            in_index=list(range(5)),
            input_transform='multiple_select',
            **kwargs,
        )
        c0, c1, c2, c3, c4 = in_channels
        full, half, quarter, eighth, last = (bts_size // 2**i for i in range(5))
        self.upsamplers = self._build_upsamplers(
            upsample_cfg,
            step_cfgs,
            {'up5': (c4, c3), 'up4': (full, c2), 'up3': (quarter, c1), 'up2': (quarter, c0)},
        )
        self.up5 = Sequential(conv_elu(c4, full), norm(full))
        self.conv5 = conv_elu(full + c3, full)
        self.up4 = Sequential(conv_elu(full, half), norm(half))
        self.conv4 = Sequential(conv_elu(half + c2, half), norm(half))
        self.atrous = nn.ModuleList(
            atrous_block(half + (c2 + i * quarter if i else 0), quarter, dilation, norm_first=i > 0)
            for i, dilation in enumerate(DILATIONS)
        )
        self.atrous_fusion = conv_elu(half + len(DILATIONS) * quarter, quarter)
        self.reduce8 = reduction(quarter, quarter, 3)
        self.up3 = Sequential(conv_elu(quarter, quarter), norm(quarter))
        self.conv3 = conv_elu(quarter + c1 + 1, quarter)
        self.reduce4 = reduction(quarter, eighth, 3)
        self.up2 = Sequential(conv_elu(quarter, eighth), norm(eighth))
        self.conv2 = conv_elu(eighth + c0 + 1, eighth)
        self.reduce2 = reduction(eighth, last, 3)
        self.up1 = conv_elu(eighth, last)
        self.reduce1 = reduction(last, last // 2, 1)
        self.conv1 = conv_elu(last + 4, last)
        self.conv_depth = nn.Conv2d(last, 1, 3, padding=1, bias=False)

    @staticmethod
    def _build_upsamplers(
        upsample_cfg: dict, step_cfgs: dict | None, steps: dict[str, tuple[int, int]]
    ) -> nn.ModuleDict:
        """Build the upsamplers; of one that needs equal channels the error says what to take."""
        try:
            return build_steps(upsample_cfg, step_cfgs, steps)
        except ValueError as error:
            if 'like in_channels' not in str(error):
                raise
            widths = ', '.join(f'{step} {high} with {low}' for step, (high, low) in steps.items())
            raise ValueError(
                'upsample_cfg: expected an upsampler whose guide may have other channels than what '
                f"it upsamples, such as dict(type='SAPA', similarity='bilinear'), as BTS's have "
                f'({widths}), got {upsample_cfg}: {error}'
            ) from error

    def init_weights(self) -> None:
        """Draw the decoder's convolutions by Xavier's uniform rule, the upsamplers by their own."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith('upsamplers.'):
                nn.init.xavier_uniform_(module.weight)
        super().init_weights()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute depth.

        Args:
            inputs: The backbone's features (N, C_i, H_i, W_i) of strides 2 to 32, fine to coarse.

        Returns:
            (N, 1, 2 H_0, 2 W_0), in metres, from 0 to ``max_depth``.
        """
        c0, c1, c2, c3, c4 = self._transform_inputs(inputs)
        x = self.up5(self.upsamplers['up5'](F.relu(c4), c3))
        x = self.conv5(torch.cat([x, c3], dim=1))
        joined = torch.cat([self.up4(self.upsamplers['up4'](x, c2)), c2], dim=1)
        x = self.conv4(joined)
        outs = [x]
        for i, block in enumerate(self.atrous):
            if i:
                x = joined = torch.cat([joined, outs[-1]], dim=1)
            outs.append(block(x))
        x = self.atrous_fusion(torch.cat(outs, dim=1))
        depth8 = self._planes(self.reduce8, x, 8, c0)

        x = self.up3(self.upsamplers['up3'](x, c1))
        x = self.conv3(torch.cat([x, c1, self._sampled(depth8, 4, c1)], dim=1))
        depth4 = self._planes(self.reduce4, x, 4, c0)

        x = self.up2(self.upsamplers['up2'](x, c0))
        x = self.conv2(torch.cat([x, c0, self._sampled(depth4, 2, c0)], dim=1))
        depth2 = self._planes(self.reduce2, x, 2, c0)

        x = self.up1(F.interpolate(x, scale_factor=2.0, mode='nearest'))
        depth1 = self.reduce1(x).sigmoid()
        depths = [depth.to(x.dtype) for depth in (depth1, depth2, depth4, depth8)]
        x = self.conv_depth(self.conv1(torch.cat([x, *depths], dim=1)))
        wide = x.to(accumulation_dtype(x.dtype))
        return self.max_depth * wide.sigmoid()

    @staticmethod
    def _planes(reduce: nn.Module, x: Tensor, ratio: int, finest: Tensor) -> Tensor:
        """Return the planes' depth, cropped to twice the size of the finest feature."""
        height, width = finest.shape[2:]
        return local_planar_guidance(reduce(x), ratio)[..., : 2 * height, : 2 * width]

    @staticmethod
    def _sampled(depth: Tensor, step: int, like: Tensor) -> Tensor:
        """Return every ``step``-th pixel of a depth map, of the size of ``like`` and its dtype."""
        height, width = like.shape[2:]
        return depth[..., ::step, ::step][..., :height, :width].to(like.dtype)
