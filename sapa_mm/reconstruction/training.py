"""Training with the data on the device and, on a GPU, a captured step."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..ops.checks import check_positive_int
from .metric import measure, summarize

# Steps before one is captured: the first of them compile and tune kernels and make the momentum.
WARM_UP = 3


class Training:
    """Train an autoencoder on images that lie on its device, step by step.

    The images are shuffled anew for every epoch, by the seed and the epoch's number alone: a
    training that is resumed after an epoch goes on as it would have.

    On a GPU the whole step is captured after a few, and replayed, since its kernels are shorter
    than their launches; anew wherever the learning rate falls, which is part of what is captured.
    That needs a stream of its own: iterate over `epoch_steps` in a `torch.cuda.stream` block.

    Args:
        model: In training mode, on a device; called with ``inputs`` and ``mode='loss'``, as
            `Autoencoder` is.
        optimizer: Of its parameters.
        images: (N, C, H, W), uint8, on the same device.
        batch_size: Images of a step; an epoch's last batch has what is left.
        milestones: Steps, counted from 0 over all epochs, at which the learning rate falls.
        gamma: What it is multiplied by. Default: 0.1.
        seed: Seed of the shuffling. Default: 0.

    Attributes:
        epoch: How many epochs are finished.
        steps: How many steps an epoch has.
        loss: The mean loss of the last epoch's images; NaN before the first.

    Raises:
        TypeError: ``batch_size`` is no int, or ``images`` are not uint8.
        ValueError: ``batch_size`` is not positive, or ``images`` have another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        images: Tensor,
        batch_size: int,
        milestones: Sequence[int],
        gamma: float = 0.1,
        seed: int = 0,
    ):
        check_positive_int('batch_size', batch_size)
        _check_images(images)
        self.model = model
        self.optimizer = optimizer
        self.images = images
        self.batch_size = batch_size
        self.milestones = tuple(milestones)
        self.gamma = gamma
        self.seed = seed
        self.epoch = 0
        self.steps = math.ceil(len(images) / batch_size)
        self.loss = math.nan
        self._first_rates = [group['lr'] for group in optimizer.param_groups]
        self._falls = 0
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        # What a captured step reads and writes, always the same memory.
        self._index = torch.zeros(batch_size, dtype=torch.int64, device=images.device)
        self._total = torch.zeros((), device=images.device)

    def epoch_steps(self) -> Iterator[int]:
        """Train for an epoch.

        Yields:
            After every step, how many of the epoch are done.
        """
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        self._total.zero_()
        for step, index in enumerate(order.split(self.batch_size)):
            self._set_learning_rate(self.epoch * self.steps + step)
            self._take(index)
            yield step + 1
        self.epoch += 1
        self.loss = self._total.item() / len(self.images)

    def _set_learning_rate(self, step: int) -> None:
        falls = sum(milestone <= step for milestone in self.milestones)
        rates = [rate * self.gamma**falls for rate in self._first_rates]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group['lr'] = rate
        if falls != self._falls:
            self._falls, self._graph = falls, None

    def _take(self, index: Tensor) -> None:
        """Make a step with the images at ``index``."""
        whole = len(index) == self.batch_size
        if index.device.type != 'cuda' or self._warm < WARM_UP or not whole:
            self._step(index)
            self._warm += 1
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Nothing is computed here: the step is the first replay.
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self._step(self._index)
            self._graph = graph
        self._index.copy_(index)
        self._graph.replay()

    def _step(self, index: Tensor) -> None:
        # Without old gradients the new ones are written, not added, in a captured step too.
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.images.index_select(0, index) / 255
        loss = self.model(batch, mode='loss')['loss']
        loss.backward()
        self.optimizer.step()
        self._total += loss.detach() * len(index)

    def state_dict(self) -> dict[str, Any]:
        """Return what a training that goes on needs, ``state_dict`` being the model's."""
        return {
            'state_dict': self.model.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'epoch': self.epoch,
            'loss': self.loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another training stopped, after one of its epochs.

        Args:
            state: What its `state_dict` gave.
        """
        self.model.load_state_dict(state['state_dict'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.epoch, self.loss = state['epoch'], state['loss']


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, batch_size: int) -> dict[str, float]:
    """Measure how well a model reconstructs images.

    Args:
        model: As for `Training`; it is left in the mode in which it was.
        images: (N, C, H, W), uint8, on its device, at least 11 pixels high and wide.
        batch_size: How many are reconstructed at once.

    Returns:
        What `summarize` gives: ``PSNR``, ``SSIM``, ``GlobalSSIM``, ``RMSE`` and ``MAE``.

    Raises:
        TypeError: ``batch_size`` is no int, or ``images`` are not uint8.
        ValueError: ``batch_size`` is not positive, or ``images`` have another shape.
    """
    check_positive_int('batch_size', batch_size)
    _check_images(images)
    training = model.training
    model.eval()
    try:
        batches = (batch / 255 for batch in images.split(batch_size))
        return summarize(torch.cat([measure(model(batch), batch) for batch in batches]).cpu())
    finally:
        model.train(training)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f'images: expected torch.uint8, got {images.dtype}')
    if images.ndim != 4 or not len(images):
        raise ValueError(f'images: expected (N, C, H, W), got {tuple(images.shape)}')
