"""Pictures of the upsampling during validation and test."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..frameworks import require
from ..ops.checks import check_choice
from ..upsamplers.checks import check_positive_int
from .recording import record_upsampling, select_upsamplers
from .upsampling import FEATURES, draw_upsampling, figure_to_rgb, input_image, outline_prediction


@HOOKS.register_module()
class UpsamplingVisualizationHook(Hook):
    """Give the visualizer a picture of every upsampling step, as `draw_upsampling` makes them.

    For segmentors and detectors. Where the pictures end up the visualizer's backends say: files,
    TensorBoard and so on::

        custom_hooks = [dict(type='UpsamplingVisualizationHook', interval=50)]

    The model runs once more on a batch that is drawn, in the main process alone. With test-time
    augmentation nothing is drawn.

    Args:
        interval: Of every so many batches of a validation or test the first is drawn, of that its
            first image.
        steps: Names of the steps to draw, such as ``['c4_c3']``. Default: all.
        features: How features are shown, ``'pca'`` or ``'first3'``, as in `feature_to_rgb`.

    Raises:
        ImportError: scikit-image, which draws boundaries, is not installed.
        TypeError: ``interval`` is no int, or ``steps`` no sequence of names.
        ValueError: ``interval`` is not positive, or an unknown choice.
    """

    def __init__(
        self, interval: int = 50, steps: Sequence[str] | None = None, features: str = 'pca'
    ):
        check_positive_int('interval', interval)
        check_choice('features', features, FEATURES)
        if steps is not None and (
            isinstance(steps, str)
            or not isinstance(steps, Sequence)
            or not all(isinstance(step, str) for step in steps)
        ):
            raise TypeError(f'steps: expected a list of names of steps, got {steps!r}')
        with require('scikit-image', 'UpsamplingVisualizationHook', 'scikit-image'):
            import skimage  # noqa: F401  now, and not at the first validation
        self.interval = interval
        self.steps = steps
        self.features = features

    def before_run(self, runner: Runner) -> None:
        """Find the steps before anything is trained.

        Raises:
            ValueError: The model has no upsamplers, or not those steps.
        """
        model = _unwrap(runner.model)
        if not isinstance(model, BaseTTAModel):
            select_upsamplers(model, self.steps)

    @torch.no_grad()
    def _draw(
        self, mode: str, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence
    ) -> None:
        model = _unwrap(runner.model)
        if batch_idx % self.interval or isinstance(model, BaseTTAModel) or not is_main_process():
            return
        with record_upsampling(model, self.steps) as recording:
            # A copy: predictions are written into the batch's data samples.
            model.test_step(copy.deepcopy(data_batch))
        image = input_image(recording.inputs, model.data_preprocessor)
        prediction = outline_prediction(image, outputs[0])
        stem = Path(outputs[0].metainfo.get('img_path') or f'batch_{batch_idx}').stem
        for step in recording.steps.values():
            figure = draw_upsampling(step, image, prediction, features=self.features)
            name = f'{mode}_upsampling_{step.name}_{stem}'
            runner.visualizer.add_image(name, figure_to_rgb(figure), runner.iter)

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


def _unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside a wrapper for several processes."""
    return model.module if is_model_wrapper(model) else model
