"""What the hooks share that draw pictures during validation and test."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from ..frameworks import require
from ..ops.checks import check_positive_int


class PictureHook(Hook):
    """Base of hooks that give the visualizer pictures of some batches of a validation or test.

    A sub-class defines `pictures`. The main process alone draws, and with test-time augmentation
    nothing is drawn.

    Args:
        interval: The first of every so many batches is drawn.

    Raises:
        ImportError: scikit-image, which draws boundaries, is not installed.
        TypeError: ``interval`` is no int.
        ValueError: ``interval`` is not positive.
    """

    def __init__(self, interval: int = 50):
        check_positive_int('interval', interval)
        with require('scikit-image', type(self).__name__, 'scikit-image'):
            import skimage  # noqa: F401  now, and not at the first validation
        self.interval = interval

    @staticmethod
    def model_of(runner: Runner) -> nn.Module | None:
        """The model of a runner without its wrapper, or None where nothing is drawn of it."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return None if isinstance(model, BaseTTAModel) else model

    def pictures(
        self,
        model: nn.Module,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[BaseDataElement],
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Draw a batch.

        Args:
            model: The model, which may be run; gradients are off.
            batch_idx: Number of the batch.
            data_batch: What the data loader gave.
            outputs: The predictions, one an image.

        Yields:
            The name of a picture and the picture, (H, W, 3), uint8, RGB.
        """
        raise NotImplementedError

    @torch.no_grad()
    def _draw(
        self, mode: str, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence
    ) -> None:
        model = self.model_of(runner)
        if batch_idx % self.interval or model is None or not is_main_process():
            return
        for name, picture in self.pictures(model, batch_idx, data_batch, outputs):
            runner.visualizer.add_image(f'{mode}_{name}', picture, runner.iter)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[BaseDataElement]
    ) -> None:
        """Draw the batch of a validation, if it is its turn."""
        self._draw('val', runner, batch_idx, data_batch, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[BaseDataElement]
    ) -> None:
        """Draw the batch of a test, if it is its turn."""
        self._draw('test', runner, batch_idx, data_batch, outputs)
