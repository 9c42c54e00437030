"""Hooks that mmengine has not."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn


def lay_out_images(module: nn.Module, args: tuple, out: dict) -> dict:
    """Return what a data preprocessor returns with images (N, C, H, W) in channels_last."""
    images = out['inputs']
    if isinstance(images, Tensor) and images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return {**out, 'inputs': images}


def make_contiguous(module: nn.Module, args: tuple, outs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a neck's features (N, C, H, W) in the order of their dimensions."""
    return tuple(out.contiguous() for out in outs)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train and test a model whose feature maps have their channels innermost in memory.

    mmengine has no setting for ``torch.channels_last``, in which convolutions are often faster, on
    CPUs and in half precision on GPUs, and SAPA too::

        custom_hooks = [dict(type='ChannelsLastHook')]

    What it computes stays the same, but for rounding. A detector's RoI head gets its features in
    the order of their dimensions, as mmcv's RoIAlign reads others wrongly and says nothing.
    """

    def __init__(self) -> None:
        self._done = False

    def _lay_out(self, runner: Runner) -> None:
        """Lay out parameters and images; what is computed of them follows."""
        # Validation within training comes here too.
        if self._done:
            return
        self._done = True
        model = runner.model.to(memory_format=torch.channels_last)
        if is_model_wrapper(model):
            model = model.module
        model.data_preprocessor.register_forward_hook(lay_out_images)
        if hasattr(model, 'roi_head'):
            model.neck.register_forward_hook(make_contiguous)

    def before_train(self, runner: Runner) -> None:
        """Lay out the model once its weights are initialized, which draws them in memory order."""
        self._lay_out(runner)

    def before_val(self, runner: Runner) -> None:
        """Lay out the model for a validation without training."""
        self._lay_out(runner)

    def before_test(self, runner: Runner) -> None:
        """Lay out the model for a test."""
        self._lay_out(runner)
