"""Pictures of superpixels during validation and test."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ..frameworks import require
from ..upsamplers.checks import check_positive_int
from ..visualization import mark_superpixels
from .superpixels import image_superpixels


@HOOKS.register_module()
class SuperpixelVisualizationHook(Hook):
    """Give the visualizer images with the superpixels of every level of a clustering backbone.

    The levels are side by side, fine to coarse. Where they end up the visualizer's backends say:
    files, TensorBoard and so on::

        custom_hooks = [dict(type='SuperpixelVisualizationHook', interval=50)]

    Needs scikit-image. With test-time augmentation nothing is drawn.

    Args:
        interval: Of every so many batches of a validation or test the first is drawn.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: ``interval`` is no int.
        ValueError: ``interval`` is not positive.
    """

    def __init__(self, interval: int = 50):
        check_positive_int('interval', interval)
        with require('scikit-image', 'SuperpixelVisualizationHook', 'scikit-image'):
            import skimage  # noqa: F401  now, and not at the first validation
        self.interval = interval

    @torch.no_grad()
    def _draw(
        self, mode: str, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence
    ) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if batch_idx % self.interval or isinstance(model, BaseTTAModel):
            return
        inputs = model.data_preprocessor(data_batch, False)['inputs']
        metas = [sample.metainfo for sample in outputs]
        for meta, levels in zip(metas, image_superpixels(model, inputs, metas), strict=True):
            image = mmcv.imread(meta['img_path'], channel_order='rgb')
            pictures = [mark_superpixels(image, level.cpu().numpy()) for level in levels.values()]
            name = f'{mode}_superpixels_{Path(meta["img_path"]).stem}'
            runner.visualizer.add_image(name, np.concatenate(pictures, axis=1), runner.iter)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[SegDataSample]
    ) -> None:
        """Draw the batch of a validation, if it is its turn."""
        self._draw('val', runner, batch_idx, data_batch, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[SegDataSample]
    ) -> None:
        """Draw the batch of a test, if it is its turn."""
        self._draw('test', runner, batch_idx, data_batch, outputs)
