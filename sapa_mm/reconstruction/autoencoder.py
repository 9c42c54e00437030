"""The autoencoder whose upsampling is under test."""

from collections.abc import Sequence

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_choice, check_positive_int
from ..upsamplers import build_steps
from ..upsamplers.build import check_pairs, downsample_type

MODES = ('tensor', 'loss', 'predict')


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Build a 3x3 convolution, batch normalization and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


@MODELS.register_module()
class Autoencoder(BaseModel):
    """Reconstruct an image from a bottleneck, through upsampling of a choice.

    The network of the image reconstruction experiment in Learning Affinity-Aware Upsampling for
    Deep Image Matting (Dai et al., CVPR 2021)::

        C(32)-D-C(64)-D-C(128)-D-C(256)-C(128)-U-C(64)-U-C(32)-U-C(1)

    C(k) is a 3x3 convolution to k channels, batch normalization and ReLU; the last one is the
    convolution alone. D halves the size, U doubles it. There are no skip connections: what the
    decoder learns of the encoder's features, the guides, comes through the upsamplers. The loss is
    L1.

    Args:
        downsample_cfg: What D is: ``dict(type='conv')``, a C(k) of stride 2 that keeps the number
            of channels; ``dict(type='max_pool')``, over 2 x 2; or ``dict(type='paired')``, the
            ``downsample`` of the upsampler that leads back to the same size, with which it shares
            its ``encode``.
        upsample_cfg: What U is, for `build_upsampler`. Its guide is the feature that the D of the
            same size gets.
        step_cfgs: Options of single steps ``'c4_c3'``, ``'c3_c2'``, ``'c2_c1'`` that differ.
            Default: none.
        in_channels: Channels of the image. Default: 1.
        channels: Channels of the encoder; the last are those of the bottleneck, and D stands
            between every two. Default: (32, 64, 128, 256).
        data_preprocessor: As in every mmengine model.
        init_cfg: As in every mmengine model. Default: PyTorch's initialization.

    Raises:
        TypeError: A config that is no dict, or an option that an upsampler does not have.
        ValueError: An unknown type, channels that are not positive, or ``'paired'`` with an
            upsampler that cannot downsample.
    """

    def __init__(
        self,
        downsample_cfg: dict,
        upsample_cfg: dict,
        step_cfgs: dict | None = None,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128, 256),
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        check_positive_int('in_channels', in_channels)
        if not isinstance(channels, Sequence):
            raise TypeError(f'channels: expected a sequence of ints, got {channels!r}')
        for width in channels:
            check_positive_int('channels', width)
        if len(channels) < 2:
            raise ValueError(f'channels: expected at least 2, got {channels!r}')
        *widths, bottleneck = channels
        self.downsample = downsample_type(downsample_cfg)

        self.encoder = nn.ModuleList(map(conv_block, [in_channels, *widths], [*widths, bottleneck]))
        if self.downsample == 'conv':
            self.downsamples = nn.ModuleList(conv_block(width, width, 2) for width in widths)
        elif self.downsample == 'max_pool':
            # It rounds up, as a convolution of stride 2 does at odd sizes.
            self.downsamples = nn.ModuleList(nn.MaxPool2d(2, ceil_mode=True) for _ in widths)
        steps = {f'c{i + 1}_c{i}': (width, width) for i, width in enumerate(widths, start=1)}
        self.steps = tuple(steps)
        self.upsamplers = build_steps(upsample_cfg, step_cfgs, steps)
        if self.downsample == 'paired':
            check_pairs(self.upsamplers)
        # They go from the bottleneck up; `output` is the last one.
        self.decoder = nn.ModuleList(map(conv_block, [bottleneck, *widths[:0:-1]], widths[::-1]))
        # The paper writes the last layer C(1) too. Normalized over the batch, an image's brightness
        # would hang on its neighbours, and where ReLU gives 0 a wrong pixel has no gradient.
        self.output = nn.Conv2d(widths[0], in_channels, 3, padding=1)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode and decode.

        Args:
            image: (N, in_channels, H, W).

        Returns:
            (N, in_channels, H, W).
        """
        x, kept = image, []
        *blocks, bottleneck = self.encoder
        for level, (block, step) in enumerate(zip(blocks, self.steps, strict=True)):
            guide = block(x)
            if self.downsample == 'paired':
                upsampler = self.upsamplers[step]
                encoding = upsampler.encode(guide)
                kept.append((guide, encoding))
                x = upsampler.downsample(guide, encoding)
            else:
                kept.append((guide,))
                x = self.downsamples[level](guide)
        x = bottleneck(x)
        for block, step in zip(self.decoder, reversed(self.steps), strict=True):
            x = self.upsamplers[step](block(x), *kept.pop())
        return self.output(x)

    def forward(
        self, inputs: Tensor, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Run the network.

        Args:
            inputs: Images (N, in_channels, H, W) in [0, 1].
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``.

        Returns:
            ``'tensor'``: the reconstructions (N, in_channels, H, W). ``'loss'``: the mean absolute
            error under ``loss``. ``'predict'``: for each image a dict of the reconstruction,
            ``pred``, and the image, ``target``, each (in_channels, H, W). Nothing is clipped.

        Raises:
            ValueError: An unknown mode.
        """
        check_choice('mode', mode, MODES)
        output = self.reconstruct(inputs)
        if mode == 'tensor':
            return output
        if mode == 'loss':
            return {'loss': F.l1_loss(output, inputs)}
        pairs = zip(output, inputs, strict=True)
        return [{'pred': pred, 'target': target} for pred, target in pairs]
