"""Affinity-aware upsampling."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import assemble
from ..ops.checks import check_bool, check_choice, check_kernel_size, check_positive_int
from ..ops.dispatch import autocast
from ..ops.layout import accumulation_dtype, is_channels_last
from ..ops.parents import are_symbols
from ..ops.tiles import STEP, tile_product
from .base import PairedUpsampler, block_grid, block_pixels, pad_to_even, zero_bias
from .registration import MODELS

MODES = ('static', 'hybrid', 'dynamic')
NORMALIZATIONS = ('sigmoid_softmax', 'softmax')
NORM_GROUPS = 32
#: Filters that all channels share are applied to so many blocks, down and across, by one product:
#: 4 times as many multiply-adds as needed, and 2.25 maps of operands at k = 6.
TILE = STEP // 2


@MODELS.register_module()
class A2U(PairedUpsampler):
    r"""Upsample a decoder feature with kernels from the encoder feature's local affinity.

    Two encodings U and V of every 2 x 2 block of the guide y, convolutions of stride 2, are
    multiplied: a second-order feature, low-rank with rank 1. P turns it into a kernel for each of
    the block's pixels, which assembles x (Learning Affinity-Aware Upsampling for Deep Image
    Matting, Dai et al., CVPR 2021):

    .. math::
        e_l = \frac{1}{\sqrt{C_y}} \sum_c (U_c * y)_l (V_c * y)_l, \qquad
        w_{l'}(p) = \mathrm{softmax}_p\, \sigma(e_l P_{l'}(p)), \qquad
        o_{l'} = \sum_p w_{l'}(p)\, x_{l+p}

    With ``kernel_size=1`` there is nothing to normalize over and the weight is the sigmoid. Outside
    the image x is 0.

    ===========  =========================================  ====================================
    mode         U and V                                    P
    ===========  =========================================  ====================================
    ``static``   learned filters                            learned
    ``hybrid``   learned filters                            from the average of y, 1x1 conv
    ``dynamic``  from y pooled to k x k, 1x1 convs          from the average of y, 1x1 conv
    ===========  =========================================  ====================================

    As a pair, its downsampling shares e and has a P of its own, over the 2K x 2K pixels around each
    block, with softmax alone.

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide. Default: ``in_channels``.
        mode: ``'static'``, ``'hybrid'`` or ``'dynamic'``.
        channel_wise: Whether every channel of y has filters of its own in U and V, or all share
            one.
        point_wise: Whether every pixel of a block has a U and V of its own, and so an e.
        kernel_size: Window size K, odd.
        encoder_kernel: Size k of U and V.
        normalization: ``'sigmoid_softmax'`` or ``'softmax'``.
        encoder_norm: Whether group normalization of 32 groups and leaky ReLU follow U and V.
        paired: Whether there is a P for `downsample`. It has no gradient where nothing is
            downsampled, which distributed training takes for an error.
        init_cfg: As in every mmengine module. Default: filters Kaiming uniform, convolutions
            Xavier uniform with bias 0, a learned P standard normal.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An unknown choice, an even ``kernel_size``, or ``encoder_norm`` where 32 does
            not divide Cy.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        mode: str = 'dynamic',
        channel_wise: bool = False,
        point_wise: bool = False,
        kernel_size: int = 3,
        encoder_kernel: int = 5,
        normalization: str = 'sigmoid_softmax',
        encoder_norm: bool = False,
        paired: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(in_channels, guide_channels, init_cfg)
        check_choice('mode', mode, MODES)
        check_bool('channel_wise', channel_wise)
        check_bool('point_wise', point_wise)
        check_kernel_size(kernel_size)
        check_positive_int('encoder_kernel', encoder_kernel)
        check_choice('normalization', normalization, NORMALIZATIONS)
        check_bool('encoder_norm', encoder_norm)
        check_bool('paired', paired)
        guide_channels = self.guide_channels
        if encoder_norm and guide_channels % NORM_GROUPS:
            raise ValueError(
                f'guide_channels: encoder_norm expected a multiple of {NORM_GROUPS}, got '
                f'{guide_channels}'
            )
        self.mode = mode
        self.channel_wise = channel_wise
        self.kernel_size = kernel_size
        self.encoder_kernel = encoder_kernel
        self.normalization = normalization
        self.paired = paired
        self.sets = 4 if point_wise else 1

        filters = self.sets * (guide_channels if channel_wise else 1)
        for name in ('encoder_u', 'encoder_v'):
            if mode == 'dynamic':
                setattr(self, name, nn.Conv2d(guide_channels, filters, 1))
            else:
                shape = (filters, 1, encoder_kernel, encoder_kernel)
                setattr(self, name, nn.Parameter(torch.empty(shape)))

        def normalize() -> nn.Module:
            if not encoder_norm:
                return nn.Identity()
            norm = nn.GroupNorm(NORM_GROUPS, self.sets * guide_channels)
            return nn.Sequential(norm, nn.LeakyReLU(0.01))

        self.norm_u, self.norm_v = normalize(), normalize()
        weights = 4 * kernel_size**2
        for name in ('up', 'down') if paired else ('up',):
            if mode == 'static':
                setattr(self, f'projection_{name}', nn.Parameter(torch.empty(weights)))
            else:
                setattr(self, f'projection_{name}', nn.Conv2d(guide_channels, weights, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize filters, convolutions and projections."""
        for parameter in self.parameters(recurse=False):
            if parameter.dim() == 1:
                nn.init.normal_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=5**0.5)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                zero_bias(module)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    def _averages(self, guide: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Average the guide over k x k windows and over all of it, whatever the mode asks for."""
        if self.mode == 'dynamic':
            return _pool(guide, self.encoder_kernel)
        return None, F.adaptive_avg_pool2d(guide, 1) if self.mode == 'hybrid' else None

    def _filters(self, pooled: Tensor | None) -> list[Tensor]:
        """Return U and V: (N or 1, S or Cy * S, k, k), the S sets of a channel in a row."""
        encoders = self.encoder_u, self.encoder_v
        if self.mode == 'dynamic':
            return [encoder(pooled) for encoder in encoders]
        return [encoder.transpose(0, 1) for encoder in encoders]

    def _filter_each(self, guide: Tensor, filters: Tensor) -> Tensor:
        """Apply filters (N or 1, S or Cy * S, k, k): (N, Cy * S, h, w)."""
        padded = pad_to_even(guide)
        if not self.channel_wise:
            filters = filters.repeat(1, self.guide_channels, 1, 1)
        # Where every image has filters of its own, images become groups of channels.
        images = padded.reshape(-1, len(filters) * padded.shape[1], *padded.shape[2:])
        filters = filters.reshape(-1, 1, *filters.shape[2:])
        out = F.conv2d(
            images.to(filters.dtype),
            filters,
            stride=2,
            padding=(self.encoder_kernel - 1) // 2,
            groups=images.shape[1],
        )
        return out.reshape(len(guide), -1, *out.shape[2:])

    def _filter_all(self, guide: Tensor, filters: Tensor) -> Tensor:
        """Apply filters (N or 1, 2, S, k, k) to every channel.

        A convolution with a channel a group uses no matrix unit, and on a GPU its gradient reads
        the map once for each of k * k taps. So this is a product: of the filters, shifted to every
        block of a tile, with the pixels around the tile.

        Returns:
            (2, N, Cy, S, tiles down, `TILE`, tiles across, `TILE`), the innermost in memory as of
            the guide.
        """
        size = filters.shape[-1]
        before = (size - 1) // 2
        extent = 2 * TILE + 2 * before  # pixels around a tile; an even number keeps rows aligned
        offsets = range(0, 2 * TILE, 2)
        shifted = [
            F.pad(filters, (x, extent - size - x, y, extent - size - y))
            for y in offsets
            for x in offsets
        ]
        filters = torch.stack(shifted, 3).flatten(1, 3)
        guide, filters = autocast(guide, filters.expand(len(guide), -1, -1, -1))
        out = tile_product(guide, filters, before)
        return out.unflatten(0, (2, self.sets, TILE, TILE)).permute(0, 4, 5, 1, 6, 2, 7, 3)

    def _project(self, mean: Tensor | None, encoding: Tensor, name: str) -> Tensor:
        """Multiply e (N, S, h, w) by P: (N, K*K, 4, h, w)."""
        projection = getattr(self, f'projection_{name}')
        projection = projection.view(1, -1, 1, 1) if mean is None else projection(mean)
        return projection.unflatten(1, (-1, 4)) * encoding[:, None]

    def _encode(self, guide: Tensor, pooled: Tensor | None) -> Tensor:
        u, v = self._filters(pooled)
        scale = self.guide_channels**-0.5
        normalized = isinstance(self.norm_u, nn.Sequential)
        if not normalized:
            v = v * scale  # and not e, as the sum of a half-precision product could overflow
        # A graph shows the convolution, which takes maps of all sizes and is easily counted.
        tiled = not (self.channel_wise or are_symbols(*guide.shape[2:]) or torch.jit.is_tracing())
        if tiled:
            u, v = self._filter_all(guide, torch.stack((u, v), 1))
        else:
            u, v = self._filter_each(guide, u), self._filter_each(guide, v)
        if normalized:
            if tiled:
                u, v = (_crop(x.flatten(1, 2), guide) for x in (u, v))
            return (self.norm_u(u) * (self.norm_v(v) * scale)).unflatten(1, (-1, self.sets)).sum(1)
        if tiled:
            return _crop((u * v).sum(1), guide)
        return (u * v).unflatten(1, (-1, self.sets)).sum(1)

    def _read(self, guide: Tensor, encoding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return e, the one given or the guide's, and the guide's average where P needs it."""
        (guide,) = autocast(guide)  # once, and not by every operator
        pooled, mean = self._averages(guide)
        if encoding is None:
            return self._encode(guide, pooled), mean
        return self._encoding(guide, encoding, self.sets), mean

    def encode(self, guide: Tensor) -> Tensor:
        """Compute the affinity e of every block of the guide.

        Args:
            guide: (N, Cy, Hg, Wg).

        Returns:
            (N, S, ceil(Hg / 2), ceil(Wg / 2)); S is 4 with ``point_wise``, one for each pixel of
            the block, row-major, and 1 otherwise.

        Raises:
            TypeError: No floating point tensor.
            ValueError: A shape that does not fit the module.
        """
        self._check_guide(guide)
        (guide,) = autocast(guide)
        pooled, _ = self._averages(guide)
        return self._encode(guide, pooled)

    def downsample(self, guide: Tensor, encoding: Tensor | None = None) -> Tensor:
        """Pool the guide with kernels over the 2K x 2K pixels around each block.

        Args:
            guide: (N, Cy, Hg, Wg).
            encoding: What `encode` gave for it. Default: it is computed.

        Returns:
            (N, Cy, ceil(Hg / 2), ceil(Wg / 2)).

        Raises:
            TypeError: No floating point tensor.
            ValueError: The module was built without ``paired=True``, or shapes that do not fit it
                or each other.
        """
        if not self.paired:
            raise ValueError('paired: expected True for downsampling, got False')
        self._check_guide(guide)
        encoding, mean = self._read(guide, encoding)
        weights = self._project(mean, encoding, 'down')
        weights = weights.flatten(1, 2).softmax(1).unflatten(1, (-1, 4))
        # Each of a block's four pixels sees the window of K x K blocks: there are four groups.
        weights = weights.transpose(1, 2).flatten(1, 2)
        blocks = block_pixels(guide).transpose(1, 2).flatten(1, 2)
        out = assemble(weights.to(blocks.dtype), blocks, kernel_size=self.kernel_size, groups=4)
        return out.unflatten(1, (4, -1)).sum(1)

    def forward(self, x: Tensor, guide: Tensor, encoding: Tensor | None = None) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: Decoder feature (N, C, H, W).
            guide: Encoder feature (N, Cy, Hg, Wg), at least as large.
            encoding: What `encode` gave for the guide. Default: it is computed.

        Returns:
            (N, C, Hg, Wg).

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        encoding, mean = self._read(guide, encoding)
        logits = self._project(mean, encoding, 'up').flatten(1, 2)
        height, width = guide.shape[2:]
        weights = F.pixel_shuffle(logits, 2)[:, :, :height, :width]
        if self.kernel_size == 1 or self.normalization == 'sigmoid_softmax':
            weights = weights.sigmoid()
        if self.kernel_size > 1:
            weights = weights.softmax(1)
        return assemble(weights.to(x.dtype), x, kernel_size=self.kernel_size)

    def flops(self, size: tuple[int, int], guide_size: tuple[int, int]) -> int:
        """Count the multiply-adds of one image.

        Per block of the guide: S (2 k^2 + 1) Cy for e and 4 K^2 for P; per pixel of the guide K^2 C
        for the assembly. What generates U, V and P once an image is left out, as in the papers.

        Args:
            size: (H, W) of x, which does not matter here.
            guide_size: (Hg, Wg) of the guide.

        Returns:
            Multiply-adds, each counted once.
        """
        height, width = block_grid(guide_size)
        affinity = self.sets * (2 * self.encoder_kernel**2 + 1) * self.guide_channels
        window = self.kernel_size**2
        assembly = guide_size[0] * guide_size[1] * window * self.in_channels
        return height * width * (affinity + 4 * window) + assembly

    def extra_repr(self) -> str:
        """Show the options that no sub-module shows."""
        return (
            f'{super().extra_repr()}, mode={self.mode!r}, channel_wise={self.channel_wise}, '
            f'point_wise={self.sets > 1}, kernel_size={self.kernel_size}, '
            f'encoder_kernel={self.encoder_kernel}, normalization={self.normalization!r}, '
            f'paired={self.paired}'
        )


def _pool(guide: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Average over ``size`` x ``size`` windows, as adaptive pooling does, and over all pixels.

    The map is read once for both, by a product. The gradient of adaptive pooling on a GPU adds up
    overlapping windows atomically, and not always in one order.

    Args:
        guide: (N, C, H, W).
        size: k.

    Returns:
        (N, C, k, k) and (N, C, 1, 1).
    """
    rows, columns = (_windows(side, size, guide) for side in guide.shape[2:])
    if is_channels_last(guide):
        sums = torch.bmm(rows.expand(len(guide), -1, -1), guide.permute(0, 2, 3, 1).flatten(2))
        sums = torch.matmul(columns, sums.unflatten(2, (guide.shape[3], -1))).permute(0, 3, 1, 2)
    else:
        sums = torch.matmul(rows, torch.matmul(guide, columns.mT))
    return sums[:, :, :size, :size], sums[:, :, size:, size:]


def _windows(side: int, size: int, like: Tensor) -> Tensor:
    """Return what pixels weigh in the windows along a side, and in all of it: (size + 1, side)."""
    window = torch.arange(size, device=like.device)[:, None]
    pixel = torch.arange(side, device=like.device)
    inside = (pixel >= window * side // size) & (pixel < ((window + 1) * side + size - 1) // size)
    inside = inside.to(accumulation_dtype(like.dtype))
    weights = F.pad(inside, (0, 0, 0, 1), value=1.0)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def _crop(tiles: Tensor, guide: Tensor) -> Tensor:
    """Lay (N, C, tiles down, T, tiles across, T) out as a map over the guide's blocks."""
    height, width = block_grid(guide.shape[2:])
    return tiles.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]
