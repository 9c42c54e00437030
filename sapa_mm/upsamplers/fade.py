"""Upsampling with kernels from decoder and encoder, and a gate between the two."""

from torch import Tensor, nn

from ..ops import assemble
from ..ops.checks import check_kernel_size, check_positive_int
from ..ops.parents import upsample_parent
from .base import Upsampler
from .registration import MODELS


@MODELS.register_module()
class FADE(Upsampler):
    r"""Upsample a decoder feature with kernels from both features, and let encoder detail through.

    One encoder convolution reads the compressed guide y and the compressed x, each at its own
    resolution; the sum of the two, softmax over K x K, is the kernel of an output pixel. A gate g
    from x mixes the guide with the assembled x (FADE: Fusing the Assets of Decoder and Encoder for
    Task-Agnostic Upsampling, Lu et al., ECCV 2022):

    .. math::
        w_{l'} &= \mathrm{softmax}(\psi(\mathrm{comp}_y(y))_{l'} + \psi(\mathrm{comp}_x(x))_l) \\
        o_{l'} &= g_l\, y_{l'} + (1 - g_l) \sum_p w_{l'}(p)\, x_{l+p}, \qquad
        g = \sigma(\mathrm{conv}_{1 \times 1}(x))

    where l is the parent of l', for any ratio of sizes. Outside the image x is 0. In an FPN the
    guide comes in twice, by the gate and by the FPN's own sum, as the authors have it.

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide, equal to C. Default: ``in_channels``.
        kernel_size: Window size K, odd.
        compressed_channels: Channels after the compression.
        init_cfg: As in every mmengine module. Default: Xavier uniform, biases 0, as in the
            authors' code.

    Raises:
        TypeError: An argument that is no int.
        ValueError: One that is not positive, an even size, or a Cy other than C.
    """

    #: Whether every channel of the encoder convolution reads one compressed channel alone.
    depthwise = False

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        kernel_size: int = 5,
        compressed_channels: int = 64,
        init_cfg: dict | None = None,
    ):
        super().__init__(in_channels, guide_channels, init_cfg)
        self.check_equal_channels('the gate')
        check_kernel_size(kernel_size)
        check_positive_int('compressed_channels', compressed_channels)
        self.kernel_size = kernel_size
        self.compressor = nn.Conv2d(in_channels, compressed_channels, 1, bias=False)
        self.guide_compressor = nn.Conv2d(self.guide_channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            kernel_size**2,
            3,
            padding=1,
            groups=compressed_channels if self.depthwise else 1,
        )
        self.gate = nn.Conv2d(in_channels, 1, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the convolutions."""
        for name, parameter in self.named_parameters():
            if name.endswith('bias'):
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)

    def predict_kernels(self, x: Tensor, guide: Tensor) -> Tensor:
        """Predict the kernels.

        Args:
            x: (N, C, H, W).
            guide: (N, C, Hg, Wg).

        Returns:
            (N, K*K, Hg, Wg), window positions row-major; the sum over a window is 1.
        """
        fine = self.content_encoder(self.guide_compressor(guide))
        coarse = self.content_encoder(self.compressor(x))
        return (fine + upsample_parent(coarse, guide.shape[2:])).softmax(1)

    def mix(self, x: Tensor, guide: Tensor, upsampled: Tensor) -> Tensor:
        """Let the gate mix the guide with the upsampled feature.

        Args:
            x: (N, C, H, W), which the gate is computed from.
            guide: (N, D, Hg, Wg), all channels of the guide or some of them.
            upsampled: (N, D, Hg, Wg), the same channels of x, assembled.

        Returns:
            (N, D, Hg, Wg), in the dtype and memory format of ``upsampled``.
        """
        gate = upsample_parent(self.gate(x).sigmoid(), guide.shape[2:]).to(upsampled.dtype)
        # torch.lerp is not exported by torch 2.6.
        return upsampled + gate * (guide.to(upsampled.dtype) - upsampled)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: Decoder feature (N, C, H, W).
            guide: Encoder feature (N, C, Hg, Wg), at least as large.

        Returns:
            (N, C, Hg, Wg).

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        upsampled = assemble(self.predict_kernels(x, guide), x, kernel_size=self.kernel_size)
        return self.mix(x, guide, upsampled)

    def flops(self, size: tuple[int, int], guide_size: tuple[int, int]) -> int:
        """Count the multiply-adds of one image.

        Per pixel of either feature: C d for the compression and 9 d K^2 for the encoder convolution
        (9 K^2 of a depthwise one). Per pixel of x: C for the gate. Per pixel of the guide: K^2 C
        for the assembly and 2 C for the mixture.

        Args:
            size: (H, W) of x.
            guide_size: (Hg, Wg) of the guide.

        Returns:
            Multiply-adds, each counted once.
        """
        channels = self.in_channels
        predict = self.compressor.weight.numel() + self.content_encoder.weight.numel()
        low, high = (height * width for height, width in (size, guide_size))
        return low * (predict + channels) + high * (predict + (self.kernel_size**2 + 2) * channels)

    def extra_repr(self) -> str:
        """Show the options that no sub-module shows."""
        return f'{super().extra_repr()}, kernel_size={self.kernel_size}'


@MODELS.register_module()
class FADELite(FADE):
    """A `FADE` that compresses to K^2 channels and has a depthwise encoder convolution.

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide, equal to C. Default: ``in_channels``.
        kernel_size: Window size K, odd.
        init_cfg: As of `FADE`.

    Raises:
        TypeError: An argument that is no int.
        ValueError: One that is not positive, an even size, or a Cy other than C.
    """

    depthwise = True

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        kernel_size: int = 5,
        init_cfg: dict | None = None,
    ):
        check_kernel_size(kernel_size)
        super().__init__(in_channels, guide_channels, kernel_size, kernel_size**2, init_cfg)
