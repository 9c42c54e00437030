"""The matting network with any upsampler."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_bool, check_choice
from ..upsamplers import GuidedHost, build_steps
from ..upsamplers.build import check_pairs, check_upsample_cfg, downsample_type
from ..upsamplers.registration import ModuleDict
from .aspp import MattingASPP
from .backbone import SLOPE, BasicBlock, MattingResNet, conv_norm_act
from .files import UNKNOWN
from .loss import alpha_loss, composition_loss

MODES = ('tensor', 'loss', 'predict')
STEPS = ('c5_c4', 'c4_c3', 'c3_c2', 'c2_c1')
#: The encoder's stride, of which images are padded to a multiple.
STRIDE = 16
#: The two losses have equal weights.
LOSS_WEIGHT = 0.5


@MODELS.register_module()
class GuidedMattingNet(GuidedHost, BaseModel):
    """Estimate the opacity of a foreground, alpha, from an image and its trimap.

    The network of Learning Affinity-Aware Upsampling for Deep Image Matting (Dai et al., CVPR
    2021), in which SAPA's authors compare upsamplers as well (Lu et al., NeurIPS 2022, Table 5): an
    encoder down to stride 16, atrous spatial pyramid pooling, and a decoder that upsamples four
    times by 2. A step adds a skip connection of its size to what it upsampled, and two residual
    blocks follow. With max pooling and bilinear upsampling it has 8,049,003 parameters. The
    upsamplers are in ``upsamplers``, under the name of their step.

    The losses are `alpha_loss` and `composition_loss`, each times 0.5.

    Args:
        upsample_cfg: Config of the upsamplers, with a ``type``.
        step_cfgs: Name of a step to the options that differ there; the steps are ``'c5_c4'``,
            ``'c4_c3'``, ``'c3_c2'`` and ``'c2_c1'``, in the order in which they are taken, and c1
            has the image's size. Default: none.
        downsample_cfg: What halves in the encoder: ``dict(type='max_pool')``, over 2 x 2;
            ``dict(type='paired')``, the ``downsample`` of the upsampler that leads back to the same
            size, with which it shares its ``encode``; or ``dict(type='conv')``, ResNet's own
            convolutions of stride 2. The guides are the features before they are halved; with
            ``'conv'`` there are none, and what the skip connections add guides in their place.
            Default: paired where ``upsample_cfg`` has ``paired=True``, and else max pooling.
        backbone: Config of the encoder. Default: `MattingResNet` as it is.
        norm_eval: Whether the encoder's batch normalizations keep their running statistics in
            training. The paper says that they are frozen, and its authors' program trains them.
        data_preprocessor: As in every mmengine model. Default: `MattingPreprocessor` with the mean
            and deviation of ImageNet, for images that are read as BGR.
        init_cfg: As in every mmengine model. Default: Xavier normal with the gain of leaky ReLU.

    Raises:
        TypeError: A config that is no dict, or an option of the wrong type.
        ValueError: An unknown type or step, ``'paired'`` with an upsampler that cannot downsample,
            or a bad option.
    """

    # OpenMMLab's segmentation and detection have no such network.
    replaces = 'GuidedMattingNet'
    pairs = True

    def __init__(
        self,
        upsample_cfg: dict,
        step_cfgs: dict | None = None,
        downsample_cfg: dict | None = None,
        backbone: dict | None = None,
        norm_eval: bool = False,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        gain = nn.init.calculate_gain('leaky_relu', SLOPE)
        super().__init__(
            data_preprocessor
            or dict(
                type='MattingPreprocessor',
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
                bgr_to_rgb=True,
            ),
            init_cfg or dict(type='Xavier', layer='Conv2d', distribution='normal', gain=gain),
        )
        if downsample_cfg is None:
            check_upsample_cfg('upsample_cfg', upsample_cfg)
            downsample_cfg = dict(type='paired' if upsample_cfg.get('paired') else 'max_pool')
        self.downsample = downsample_type(downsample_cfg)
        backbone = dict(type='MattingResNet') if backbone is None else backbone
        if not isinstance(backbone, Mapping):
            raise TypeError(
                f"backbone: expected a dict of the options of 'MattingResNet', got {backbone!r}"
            )
        check_bool('norm_eval', norm_eval)
        own = dict(strided=self.downsample == 'conv', norm_eval=norm_eval)
        for name in own.keys() & backbone.keys():
            raise ValueError(
                f'backbone: expected no {name}, which the network sets, got {backbone}'
            )
        self.backbone: MattingResNet = MODELS.build({'type': 'MattingResNet', **backbone, **own})
        fine, middle, coarse = self.backbone.channels
        self.aspp = MattingASPP(coarse)
        # They go from the coarsest step to the finest.
        widths = (coarse, middle, fine, fine)
        outs = (middle, fine, fine, max(fine // 2, 1))
        self.upsamplers = build_steps(
            upsample_cfg, step_cfgs, {s: (c, c) for s, c in zip(STEPS, widths, strict=True)}
        )
        if self.downsample == 'paired':
            check_pairs(self.upsamplers)
        sources = (middle, fine, fine, self.backbone.conv1.in_channels)
        self.skips = ModuleDict(
            {
                step: conv_norm_act(source, width)
                for step, source, width in zip(STEPS, sources, widths, strict=True)
            }
        )
        self.blocks = ModuleDict(
            {
                step: nn.Sequential(BasicBlock(width, out), BasicBlock(out, out))
                for step, width, out in zip(STEPS, widths, outs, strict=True)
            }
        )
        self.head = nn.Sequential(
            conv_norm_act(outs[-1], 1), nn.Conv2d(1, 1, 3, padding=1, bias=False)
        )

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says, and let the last convolution begin with a sum from 0 up.

        It sees normalized values of which a leaky ReLU leaves the positive ones. If its weights
        have a negative sum, alpha begins below 0, and training may stay there. Both signs are
        equally probable, and stand for the same function of what is before it.
        """
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        anew = not self.is_init and all(cfg['type'] != 'Pretrained' for cfg in configs)
        BaseModel.init_weights(self)
        *_, last = self.head.parameters()
        if anew and last.sum() < 0:
            with torch.no_grad():
                last.neg_()

    def estimate(self, inputs: Tensor) -> Tensor:
        """Estimate alpha.

        Args:
            inputs: Normalized image and trimap / 255, (N, 4, H, W), of any size.

        Returns:
            (N, 1, H, W), which nothing keeps within [0, 1].
        """
        encodings: list[Tensor] = []

        def downsample(level: int, guide: Tensor) -> Tensor:
            if self.downsample == 'max_pool':
                return F.max_pool2d(guide, 2, ceil_mode=True)
            upsampler = self.upsamplers[STEPS[-1 - level]]
            encodings.append(upsampler.encode(guide))
            return upsampler.downsample(guide, encodings[-1])

        features = self.backbone(inputs, downsample)
        sources, guides = list(features.skips), list(features.guides)
        x = self.aspp(features.last)
        for step in STEPS:
            skip = self.skips[step](sources.pop())
            guide = guides.pop() if guides else skip
            shared = [encodings.pop()] if encodings else []
            x = self.blocks[step](self.upsamplers[step](x, guide, *shared) + skip)
        return self.head(x)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Run the network.

        Args:
            inputs: What the data preprocessor gives: normalized images and trimaps / 255,
                (N, 4, H, W).
            data_samples: The images' samples. They have ``trimap``, (1, H, W), and in training
                ``gt_alpha``, in [0, 1], ``gt_fg`` and ``gt_bg``, (3, H, W), of 0 to 255.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``.

        Returns:
            ``'tensor'``: alpha (N, 1, H, W). ``'loss'``: ``loss_alpha`` and ``loss_composition``.
            ``'predict'``: the samples with ``pred_alpha``, (1, H, W), uint8.

        Raises:
            ValueError: An unknown mode, or no data samples where they are needed.
        """
        check_choice('mode', mode, MODES)
        if mode == 'tensor':
            return self.estimate(inputs)
        if data_samples is None or len(data_samples) != len(inputs):
            got = 'None' if data_samples is None else len(data_samples)
            raise ValueError(
                f'data_samples: expected one for each of {len(inputs)} images in mode {mode!r}, '
                f'got {got}'
            )
        return (self.loss if mode == 'loss' else self.predict)(inputs, data_samples)

    def loss(self, inputs: Tensor, data_samples: Sequence[BaseDataElement]) -> dict[str, Tensor]:
        """Compute the losses of a batch, see `forward`."""
        pred = self.estimate(inputs)

        def stacked(name: str) -> Tensor:
            fields = [sample.get(name) for sample in data_samples]
            if None in fields:
                raise ValueError(f'data_samples: expected {name} in each for the loss, got none')
            return torch.stack([field.data for field in fields])

        alpha, unknown = stacked('gt_alpha'), stacked('trimap') == UNKNOWN
        foreground, background = stacked('gt_fg') / 255, stacked('gt_bg') / 255
        with torch.autocast(inputs.device.type, enabled=False):
            pred = pred.float()
            composition = composition_loss(pred, alpha, foreground, background, unknown)
            return {
                'loss_alpha': LOSS_WEIGHT * alpha_loss(pred, alpha, unknown),
                'loss_composition': LOSS_WEIGHT * composition,
            }

    def predict(
        self, inputs: Tensor, data_samples: Sequence[BaseDataElement]
    ) -> list[BaseDataElement]:
        """Estimate alpha of whole images, one after the other.

        An image is padded at the bottom and on the right by its reflection to multiples of 16, and
        the result is cropped, clipped, rounded, and overwritten where the trimap knows it.

        Args:
            inputs: As in `forward`.
            data_samples: As in `forward`; ``img_shape`` says what of the inputs is no padding.
                Default: all.

        Returns:
            The samples with ``pred_alpha``, (1, H, W), uint8.
        """
        for image, sample in zip(inputs, data_samples, strict=True):
            height, width = sample.get('img_shape', image.shape[1:])[:2]
            padded = reflect_to_multiple(image[None, :, :height, :width], STRIDE)
            alpha = self.estimate(padded)[0, :, :height, :width].float()
            alpha = (alpha.clamp(0, 1) * 255).round().to(torch.uint8)
            trimap = sample.trimap.data
            alpha = torch.where(trimap == UNKNOWN, alpha, trimap)
            sample.pred_alpha = PixelData(data=alpha)
        return list(data_samples)


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad maps at the bottom and on the right by their reflection, as often as that takes.

    Args:
        x: (N, C, H, W).
        multiple: What both sides of the result are the least multiples of.

    Returns:
        (N, C, H', W'); pixel H + i is pixel H - 2 - i, and likewise in rows.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        if size % multiple:
            place = torch.arange(-(-size // multiple) * multiple, device=x.device)
            period = max(2 * (size - 1), 1)
            place = place % period
            x = x.index_select(dim, torch.minimum(place, period - place) if size > 1 else place * 0)
    return x
