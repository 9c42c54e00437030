"""Pictures of superpixels during validation and test."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from torch import nn

from ..visualization import mark_superpixels
from ..visualization.hook import PictureHook
from .superpixels import image_superpixels


@HOOKS.register_module()
class SuperpixelVisualizationHook(PictureHook):
    """Give the visualizer images with the superpixels of every level of a clustering backbone.

    The levels are side by side, fine to coarse. Where they end up the visualizer's backends say:
    files, TensorBoard and so on::

        custom_hooks = [dict(type='SuperpixelVisualizationHook', interval=50)]

    It needs scikit-image. With test-time augmentation nothing is drawn.

    Args:
        interval: The first of every so many batches of a validation or test is drawn.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: ``interval`` is no int.
        ValueError: ``interval`` is not positive.
    """

    def pictures(
        self,
        model: nn.Module,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[SegDataSample],
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Draw every image of a batch, see `PictureHook`."""
        inputs = model.data_preprocessor(data_batch, False)['inputs']
        metas = [sample.metainfo for sample in outputs]
        for meta, levels in zip(metas, image_superpixels(model, inputs, metas), strict=True):
            image = mmcv.imread(meta['img_path'], channel_order='rgb')
            marked = [mark_superpixels(image, level.cpu().numpy()) for level in levels.values()]
            yield f'superpixels_{Path(meta["img_path"]).stem}', np.concatenate(marked, axis=1)
