"""Loads trained models, reads images, and has the models predict."""

import copy
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import nn

from .complexity.count import build
from .configs import is_matting, reason, type_name
from .errors import ToolError
from .weights import upsamplers_loaded


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


def read_trimaps(
    paths: Sequence[Path], names: Sequence[Path], images: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Read the trimaps of images.

    Args:
        paths: Their files.
        names: Files of the images.
        images: The images.

    Returns:
        (H, W), uint8, of 0, 128 and 255, for each.

    Raises:
        ToolError: There are more or fewer of them than images, or one is missing, no trimap, or of
            another size than its image.
    """
    from ..matting import files

    if len(paths) != len(names):
        raise ToolError(
            f'--trimaps: expected one for each of the {len(names)} images, got {len(paths)}'
        )
    check_files(paths)
    trimaps = []
    for path, name, image in zip(paths, names, images, strict=True):
        try:
            trimaps.append(files.read_trimap(path))
            files.check_same_size(**{str(name): image, str(path): trimaps[-1]})
        except ValueError as error:
            raise ToolError(str(error)) from error
    return trimaps


def load_model(cfg: Config, checkpoint: str | Path, device: str | torch.device) -> nn.Module:
    """Build a config's model with a checkpoint's weights, ready to predict.

    Args:
        cfg: Config of a segmentor or a depth estimator of mmseg, a detector of mmdet or a matting
            network, read from a file.
        checkpoint: File of the weights.
        device: Where the model predicts.

    Raises:
        ToolError: The model cannot be built, the weights do not fit it, or there are none for its
            upsamplers.
    """
    try:
        model = init_model(cfg, str(checkpoint), device)
        # The framework's function has built the model and loads what fits, so it is loaded again.
        # Published segmentors and detectors may have heads for other classes; mattes have none.
        options = dict(map_location='cpu', logger='silent', strict=is_matting(cfg))
        with upsamplers_loaded(model, checkpoint, str(cfg.filename)):
            load_checkpoint(model, str(checkpoint), **options)
    except ToolError:
        raise
    except pickle.UnpicklingError as error:
        raise ToolError(str(error).partition('\n')[0]) from error
    except Exception as error:  # of whatever kind: model and weights are the user's
        raise ToolError(f'{checkpoint} does not fit {cfg.filename}: {reason(error)}') from error
    return model


def init_model(cfg: Config, checkpoint: str, device: str | torch.device) -> nn.Module:
    """Build a config's model by the framework's own function, if it has one; see `load_model`."""
    if is_matting(cfg):
        # `load_model` loads the weights, which the frameworks' functions do here as well.
        model = build(cfg).to(device)
        model.cfg = cfg
        return model
    if cfg.default_scope == 'mmseg':
        from mmseg.apis import init_model as init_segmentor

        return init_segmentor(without_truth(cfg), checkpoint, device=device)
    from mmdet.apis import init_detector

    # By the default it would build the test's data set, for colours that no tool uses.
    return init_detector(cfg, checkpoint, device=device, palette='random')


def without_truth(cfg: Config) -> Config:
    """Take what loads truth out of the ``test_pipeline`` of a config of mmseg.

    An image to predict has none, and mmseg's ``inference_model`` skips ``LoadAnnotations`` alone,
    by its name.

    Args:
        cfg: The config, which stays as it is.

    Returns:
        A copy; without a ``test_pipeline`` it has that of its ``test_dataloader``.
    """
    from mmcv.transforms import LoadAnnotations
    from mmseg.datasets.transforms import LoadBiomedicalAnnotation, LoadDepthAnnotation
    from mmseg.registry import TRANSFORMS

    loaders = (LoadAnnotations, LoadBiomedicalAnnotation, LoadDepthAnnotation)

    def loads_truth(transform: Mapping) -> bool:
        found = TRANSFORMS.get(transform['type'])
        return isinstance(found, type) and issubclass(found, loaders)

    cfg = copy.deepcopy(cfg)
    pipeline = cfg.get('test_pipeline') or cfg.test_dataloader.dataset.pipeline
    cfg.test_pipeline = [transform for transform in pipeline if not loads_truth(transform)]
    return cfg


def predict(
    model: nn.Module, image: np.ndarray, trimap: np.ndarray | None = None
) -> BaseDataElement:
    """Run a model of `load_model` on an image.

    Args:
        model: The model.
        image: (H, W, 3), uint8, BGR, of any size.
        trimap: (H, W), uint8, of 0, 128 and 255, for a matting network, which needs it.

    Returns:
        The data sample with the prediction.

    Raises:
        ToolError: There is no trimap for a matting network, or one for another model.
    """
    cfg = model.cfg
    assert isinstance(cfg, Config)
    if is_matting(cfg) and trimap is None:
        raise ToolError(
            'CONFIG: a matting network needs the trimap of every image, which `sapa-mm visualize` '
            'takes by --trimaps and `sapa-mm matte` as TRIMAP'
        )
    if trimap is not None and not is_matting(cfg):
        raise ToolError(
            f'--trimaps: expected a GuidedMattingNet, which takes them, got {type_name(cfg.model)}'
        )
    if trimap is not None:
        # Not above: it needs mmengine's models, which --help does without.
        from ..matting import predict_alpha

        return predict_alpha(model, image, trimap)
    if cfg.default_scope == 'mmseg':
        from mmseg.apis import inference_model as run
    else:
        from mmdet.apis import inference_detector as run
    return run(model, image)
