"""Content-aware reassembly of features."""

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import assemble
from ..ops.checks import check_kernel_size, check_positive_int
from .base import Upsampler, fit_to_size, zero_bias
from .registration import MODELS


@MODELS.register_module()
class CARAFE(Upsampler):
    r"""Upsample a decoder feature with kernels predicted from its own content.

    A 1x1 convolution compresses the channels of x and an encoder convolution predicts
    :math:`G K^2 s^2` channels from them, which a pixel shuffle lays out as a kernel for every
    output pixel. Softmax normalizes it over its K x K window, and it assembles x (CARAFE:
    Content-Aware ReAssembly of FEatures, Wang et al., ICCV 2019):

    .. math:: o_{l'} = \sum_p \mathrm{softmax}_p(\psi(\mathrm{comp}(x)))_{l'}(p)\; x_{l+p}

    Outside the image x is 0. The guide only says how large the result must be: an overshoot by
    less than s is cropped at the bottom and right, any other difference is interpolated
    bilinearly. It runs wherever `sapa_mm.ops.assemble` runs, CPU and bfloat16 included; its state
    dict is that of mmcv's ``CARAFEPack``.

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide. Default: ``in_channels``.
        scale_factor: Ratio s.
        kernel_size: Window size K, odd.
        groups: Groups G of channels with kernels of their own; divides C.
        encoder_kernel: Size of the encoder convolution, odd.
        encoder_dilation: Dilation of the encoder convolution.
        compressed_channels: Channels after the compression.
        init_cfg: As in every mmengine module. Default: Xavier uniform, the encoder convolution
            normal with std 0.001, biases 0.

    Raises:
        TypeError: An argument that is no int.
        ValueError: One that is not positive, an even size, or ``groups`` that do not divide C.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        scale_factor: int = 2,
        kernel_size: int = 5,
        groups: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
        init_cfg: dict | None = None,
    ):
        super().__init__(in_channels, guide_channels, init_cfg)
        check_positive_int('scale_factor', scale_factor)
        check_kernel_size(kernel_size)
        check_positive_int('groups', groups)
        check_kernel_size(encoder_kernel, 'encoder_kernel')
        check_positive_int('encoder_dilation', encoder_dilation)
        check_positive_int('compressed_channels', compressed_channels)
        if in_channels % groups:
            raise ValueError(f'groups: expected a divisor of {in_channels}, got {groups}')
        self.scale_factor = scale_factor
        self.kernel_size = kernel_size
        self.groups = groups
        self.channel_compressor = nn.Conv2d(in_channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            groups * kernel_size**2 * scale_factor**2,
            encoder_kernel,
            padding=encoder_dilation * (encoder_kernel // 2),
            dilation=encoder_dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the convolutions; kernels start out almost uniform."""
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        zero_bias(self.channel_compressor)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        zero_bias(self.content_encoder)

    def predict_kernels(self, x: Tensor) -> Tensor:
        """Predict the kernels.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, G*K*K, sH, sW), group by group, window positions row-major; the sum over a window
            is 1.
        """
        logits = self.content_encoder(self.channel_compressor(x))
        logits = F.pixel_shuffle(logits, self.scale_factor).unflatten(1, (self.groups, -1))
        return logits.softmax(2).flatten(1, 2)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: Decoder feature (N, C, H, W).
            guide: Encoder feature (N, Cy, Hg, Wg), at least as large; only its size counts.

        Returns:
            (N, C, Hg, Wg).

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        kernels = self.predict_kernels(x)
        out = assemble(kernels, x, kernel_size=self.kernel_size, groups=self.groups)
        return fit_to_size(out, x, tuple(guide.shape[2:]), self.scale_factor)

    def flops(self, size: tuple[int, int], guide_size: tuple[int, int]) -> int:
        """Count the multiply-adds of one image: (C + k^2 G K^2 s^2) d + s^2 K^2 C per pixel of x.

        k is the size of the encoder convolution and d the compressed width.

        Args:
            size: (H, W) of x.
            guide_size: (Hg, Wg) of the guide, which does not matter here.

        Returns:
            Multiply-adds, each counted once.
        """
        encoder = self.content_encoder
        predict = self.in_channels + encoder.kernel_size[0] ** 2 * encoder.out_channels
        window = self.scale_factor**2 * self.kernel_size**2
        return size[0] * size[1] * (predict * encoder.in_channels + window * self.in_channels)

    def extra_repr(self) -> str:
        """Show the options that no sub-module shows."""
        return (
            f'{super().extra_repr()}, scale_factor={self.scale_factor}, '
            f'kernel_size={self.kernel_size}, groups={self.groups}'
        )
