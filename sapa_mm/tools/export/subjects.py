"""Builds what is exported: a segmentor, a depth estimator, a matting network or an upsampler."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from ...upsamplers import build_upsampler
from ..complexity.command import padded_size
from ..complexity.count import build, input_channels
from ..configs import is_matting, read_config, reason
from ..errors import ToolError
from ..presets import upsampler_config
from ..weights import upsamplers_loaded

if TYPE_CHECKING:  # an upsampler alone needs no framework
    from mmseg.models import BaseSegmentor

Size = tuple[int, int]

# An upsampler has a guide of this size unless --size gives one.
UPSAMPLER_SIZE = (64, 96)


class Subject(NamedTuple):
    """Describes what is exported.

    Attributes:
        name: As the user gave it.
        model: The module, in evaluation mode.
        inputs: Names of its inputs.
        output: Name of its output.
        make: (batch, height, width) to inputs.
        notes: Lines for whoever feeds the file.
    """

    name: str
    model: nn.Module
    inputs: tuple[str, ...]
    output: str
    make: Callable[[int, int, int], tuple[Tensor, ...]]
    notes: tuple[str, ...] = ()


class WholeImage(nn.Module):
    """Computes a segmentor's logits, or a depth estimator's depth, of whole images.

    Args:
        segmentor: A segmentor of mmseg that has ``encode_decode``.
    """

    def __init__(self, segmentor: 'BaseSegmentor') -> None:
        super().__init__()
        self.model = segmentor

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (N, classes, H, W), or depth (N, 1, H, W), of an image (N, 3, H, W)."""
        # It is a plain tuple: a `torch.Size` would be taken for that of a window.
        size = tuple(image.shape[2:])
        return self.model.encode_decode(image, [dict(img_shape=size, ori_shape=size)])


def is_depth_estimator(model: nn.Module) -> bool:
    """Whether it is a depth estimator of mmseg, which gives metres in place of logits."""
    from mmseg.models import DepthEstimator

    return isinstance(model, DepthEstimator)


def preprocessing(cfg: Config) -> str:
    """Say in words how a model's images are prepared."""
    options = cfg.model.get('data_preprocessor') or {}
    mean, std = options.get('mean'), options.get('std')
    order = 'RGB' if options.get('bgr_to_rgb') else 'BGR'
    if options.get('rgb_to_bgr'):
        order = 'as the images are read, with the channels turned round'
    values = f'({order} of 0 to 255 - mean {mean}) / std {std}' if mean else f'{order} of 0 to 255'
    if not is_matting(cfg):
        return f'image: float32 (N, 3, H, W), {values}'
    return f'image: float32 (N, 4, H, W), {values}, and the trimap / 255'


def build_model(cfg: Config, checkpoint: Path | None) -> BaseModule:
    """Build a config's model for inference, without downloading anything.

    Args:
        cfg: The config; what it says of pretrained weights is taken out of it.
        checkpoint: File of the weights. None: they are random.

    Raises:
        ToolError: The upsamplers have no weights in it.
    """
    for part in (cfg.model, cfg.model.get('backbone') or {}):
        part.pop('pretrained', None)
        part.pop('init_cfg', None)
    model: BaseModule = build(cfg)
    if checkpoint is None:
        model.init_weights()
    else:
        with upsamplers_loaded(model, checkpoint, str(cfg.filename)):
            load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
    return model


def read_model(
    config: str, checkpoint: Path | None, size: Sequence[int] | None
) -> tuple[Subject, Size]:
    """Build the model of a config.

    Args:
        config: CONFIG.
        checkpoint: CHECKPOINT. None: the weights are random.
        size: (H, W) that --size gives. None: the config's.

    Returns:
        The subject, and the size of its images.

    Raises:
        ToolError: A config of another model, or weights that do not fit it.
    """
    cfg = read_config(config)
    if cfg.default_scope != 'mmseg':
        raise ToolError(
            f'CONFIG: expected a segmentor or a matting network, or --upsampler, got a model of '
            f'{cfg.default_scope}, {cfg.model.get("type")}; detectors are not exported'
        )
    image_size = padded_size(config, cfg, size, '--size')
    try:
        model = build_model(cfg, checkpoint)
    except ToolError:
        raise
    except pickle.UnpicklingError as error:
        raise ToolError(str(error).partition('\n')[0]) from error
    except Exception as error:  # of whatever kind: model and weights are the user's
        raise ToolError(f'{checkpoint or config} cannot be loaded: {reason(error)}') from error
    matting = is_matting(cfg)
    if not matting and not hasattr(model, 'encode_decode'):
        raise ToolError(
            f'CONFIG: expected a segmentor with encode_decode, got {type(model).__name__}'
        )
    channels = input_channels(model)
    notes = [preprocessing(cfg)]
    if matting:
        output = 'alpha'
        notes.append("alpha: float32 (N, 1, H, W), to be clipped; known pixels are the trimap's")
    else:
        output = 'depth' if is_depth_estimator(model) else 'logits'
    subject = Subject(
        config,
        (model if matting else WholeImage(model)).eval(),
        ('image',),
        output,
        lambda batch, height, width: (torch.randn(batch, channels, height, width),),
        tuple(notes),
    )
    return subject, image_size


def make_upsampler(
    name: str, channels: Sequence[int], size: Sequence[int] | None
) -> tuple[Subject, Size]:
    """Build the upsampler of a preset.

    Args:
        name: Name of the preset.
        channels: Channels of x and, where they differ, of the guide.
        size: (Hg, Wg) that --size gives. None: `UPSAMPLER_SIZE`.

    Returns:
        The subject, and the size of its guide.

    Raises:
        ToolError: The upsampler does not take these channels.
    """
    torch.manual_seed(0)
    try:
        model = build_upsampler(upsampler_config(name), *channels)
    except (ImportError, TypeError, ValueError) as error:
        raise ToolError(f'--channels: {error}') from error
    low, high = channels[0], channels[-1]

    def make(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, low, -(-height // 2), -(-width // 2))
        return x, torch.randn(batch, high, height, width)

    height, width = size or UPSAMPLER_SIZE
    return Subject(name, model.eval(), ('x', 'guide'), 'upsampled', make), (height, width)
