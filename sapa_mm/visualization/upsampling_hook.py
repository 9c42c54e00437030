"""Pictures of the upsampling during validation and test."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from ..ops.checks import check_choice
from .hook import PictureHook
from .prediction import find_max_depth, outline_prediction, prediction_title
from .recording import record_upsampling, select_upsamplers
from .upsampling import FEATURES, draw_upsampling, figure_to_rgb, input_image


@HOOKS.register_module()
class UpsamplingVisualizationHook(PictureHook):
    """Give the visualizer a picture of every upsampling step, as `draw_upsampling` makes them.

    It works with segmentors, depth estimators and detectors. Where the pictures end up the
    visualizer's backends say: files, TensorBoard and so on::

        custom_hooks = [dict(type='UpsamplingVisualizationHook', interval=50)]

    The model runs once more on a batch that is drawn, in the main process alone. With test-time
    augmentation nothing is drawn.

    Args:
        interval: The first of every so many batches of a validation or test is drawn, and of it
            the first image.
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
        super().__init__(interval)
        check_choice('features', features, FEATURES)
        if steps is not None and (
            isinstance(steps, str)
            or not isinstance(steps, Sequence)
            or not all(isinstance(step, str) for step in steps)
        ):
            raise TypeError(f'steps: expected a list of names of steps, got {steps!r}')
        self.steps = steps
        self.features = features

    def before_run(self, runner: Runner) -> None:
        """Find the steps before anything is trained.

        Raises:
            ValueError: The model has no upsamplers, or not those steps.
        """
        model = self.model_of(runner)
        if model is not None:
            select_upsamplers(model, self.steps)

    def pictures(
        self,
        model: nn.Module,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[BaseDataElement],
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Draw the first image of a batch, see `PictureHook`."""
        with record_upsampling(model, self.steps) as recording:
            # It gets a copy, as predictions are written into the batch's data samples.
            model.test_step(copy.deepcopy(data_batch))
        image = input_image(recording.inputs, model.data_preprocessor)
        prediction = outline_prediction(image, outputs[0], find_max_depth(model))
        title = prediction_title(outputs[0], find_max_depth(model))
        stem = Path(outputs[0].metainfo.get('img_path') or f'batch_{batch_idx}').stem
        for step in recording.steps.values():
            figure = draw_upsampling(
                step, image, prediction, features=self.features, prediction_title=title
            )
            yield f'upsampling_{step.name}_{stem}', figure_to_rgb(figure)
