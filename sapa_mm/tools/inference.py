"""Loads trained models, reads images, and has the models predict."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import nn

from .configs import reason
from .errors import ToolError


def check_files(paths: Sequence[Path]) -> None:
    """Check that files exist.

    Raises:
        ToolError: One does not.
    """
    for path in paths:
        if not path.is_file():
            raise ToolError(f'{path}: no such file')


def read_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Read images.

    Args:
        paths: Their files, which exist.

    Returns:
        (H, W, 3), uint8, BGR, for each.

    Raises:
        ToolError: A file holds no image.
    """
    images = []
    for path in paths:
        image = mmcv.imread(path)
        if image is None:
            raise ToolError(f'{path}: expected an image')
        images.append(image)
    return images


def load_model(cfg: Config, checkpoint: str | Path, device: str | torch.device) -> nn.Module:
    """Build a config's model with a checkpoint's weights, ready to predict.

    Args:
        cfg: Config of a segmentor of mmseg or a detector of mmdet, read from a file.
        checkpoint: File of the weights.
        device: Where the model predicts.

    Raises:
        ToolError: The model cannot be built, or the weights do not fit it.
    """
    try:
        if cfg.default_scope == 'mmseg':
            from mmseg.apis import init_model

            return init_model(cfg, str(checkpoint), device=device)
        from mmdet.apis import init_detector

        # By the default it would build the test's data set, for colours that no tool uses.
        return init_detector(cfg, str(checkpoint), device=device, palette='random')
    except Exception as error:  # of whatever kind: model and weights are the user's
        raise ToolError(f'{checkpoint} does not fit {cfg.filename}: {reason(error)}') from error


def predict(model: nn.Module, image: np.ndarray) -> BaseDataElement:
    """Run a model of `load_model` on an image.

    Args:
        model: The model.
        image: (H, W, 3), uint8, BGR, of any size.

    Returns:
        The data sample with the prediction.
    """
    cfg = model.cfg
    assert isinstance(cfg, Config)
    if cfg.default_scope == 'mmseg':
        from mmseg.apis import inference_model as run
    else:
        from mmdet.apis import inference_detector as run
    return run(model, image)
