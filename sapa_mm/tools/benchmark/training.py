"""The training steps of whole models of mmsegmentation."""

import contextlib
import copy
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..complexity.count import blank_sample, build
from ..configs import read_config
from ..errors import ToolError
from ..output import markdown_table
from .candidates import reason_of
from .report import milliseconds, number
from .rows import TRAINING_PASSES, ModelTiming, NotTimed, TrainingRow
from .stopwatch import synchronize

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.structures import BaseDataElement

# Steps before the timed ones: the first compile and tune, and a loss scale may have to settle.
WARM_UP = 3
# A prediction of one image is short: it is repeated within a round.
PREDICTIONS = 4


def labelled(labels: Tensor) -> 'BaseDataElement':
    """Make a data sample of mmsegmentation with these labels (1, H, W)."""
    from mmengine.structures import PixelData

    height, width = labels.shape[1:]
    sample = blank_sample('mmseg', (height, width))
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def segmentor(cfg: 'Config', device: torch.device) -> Any:
    """Build the model of a config on a device, to be trained."""
    return build(cfg).to(device).train()


@contextlib.contextmanager
def quiet_mmengine() -> Iterator[None]:
    """Keep a line for every option of every parameter off the output."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


class Trainee:
    """A `Trainee` is a model with its optimizer and random images on its device.

    Args:
        cfg: Config of a segmentor, which gets random weights; SyncBN becomes BN.
        batch: Images of a step.
        size: (H, W) of the images.
        dtype: Name of the precision of a step: ``'float32'``, or half precision by AMP.
        device: Where it runs.
    """

    def __init__(
        self, cfg: 'Config', batch: int, size: tuple[int, int], dtype: str, device: torch.device
    ):
        from mmengine.optim import build_optim_wrapper
        from mmengine.registry import DefaultScope

        cfg = copy.deepcopy(cfg)
        # In training images are padded to this size.
        cfg.model.data_preprocessor.size = size
        options = dict(cfg.optim_wrapper)
        options['type'] = 'OptimWrapper' if dtype == 'float32' else 'AmpOptimWrapper'
        options.pop('loss_scale', None)
        options.pop('dtype', None)
        if dtype != 'float32':
            options['dtype'] = dtype
        self.model = segmentor(cfg, device)
        with DefaultScope.overwrite_default_scope(cfg.default_scope), quiet_mmengine():
            self.optimizer = build_optim_wrapper(self.model, options)
        classes = self.model.num_classes
        self.images = torch.randint(256, (batch, 3, *size), dtype=torch.uint8, device=device)
        labels = torch.randint(classes, (batch, 1, *size), device=device)
        self.samples = [labelled(image) for image in labels]

    def step(self) -> dict[str, Tensor]:
        """Make a training step as mmengine's training loop does.

        Returns:
            The losses, which hold no graph.
        """
        data = {'inputs': list(self.images), 'data_samples': self.samples}
        losses = self.model.train_step(data, self.optimizer)
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def predict(self) -> None:
        """Predict the classes of one image, several times."""
        image = self.images[:1].float() / 128 - 1
        for _ in range(PREDICTIONS):
            self.model(image, None, mode='predict')


@dataclass
class Timed:
    """A `Timed` is a model that is timed, and what the rounds took.

    Attributes:
        trainee: The model.
        row: Its row.
        own_bytes: What it holds between its steps.
        seconds: Seconds of every round, by the label of the pass.
        peaks: Most bytes that it held during a pass, likewise.
    """

    trainee: Trainee
    row: TrainingRow
    own_bytes: int
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {label: [] for label in TRAINING_PASSES}
    )
    peaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TRAINING_PASSES, 0))

    def passes(self) -> dict[str, Callable[[], object]]:
        """Return what is timed, by the label of the pass."""
        calls = (self.trainee.step, self.trainee.predict)
        return dict(zip(TRAINING_PASSES, calls, strict=True))


def allocated(device: torch.device) -> int:
    """Return how many bytes of a device are allocated; 0 of a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == 'cuda' else 0


def prepare(
    row: TrainingRow, make: Callable[[], Trainee], device: torch.device
) -> Timed | NotTimed:
    """Make a model and warm it up.

    Args:
        row: Its row, which gets the loss.
        make: Makes it.
        device: Where it runs.

    Returns:
        What is to be timed, or why it cannot be.
    """
    torch.manual_seed(0)
    before = allocated(device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the frameworks warn about schedulers and resizing
            trainee = make()
            for _ in range(WARM_UP):
                loss = float(trainee.step()['loss'])
            trainee.model.eval()
            trainee.predict()
    except Exception as error:  # whatever it is: the other models are timed
        return NotTimed(reason_of(error))
    if not math.isfinite(loss):
        return NotTimed(f'its loss is {loss}', refused=True)
    row.loss = loss
    return Timed(trainee, row, allocated(device) - before)


def time_once(timed: Timed, device: torch.device, keep: bool) -> None:
    """Time every pass of a model once, until the device is done.

    Args:
        timed: The model, which gets the figures.
        device: Where it runs.
        keep: Whether to keep the figures.
    """
    for label, call in timed.passes().items():
        timed.trainee.model.train(label == TRAINING_PASSES[0])
        synchronize(device)
        before = allocated(device)
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds = time.perf_counter() - start
        if label != TRAINING_PASSES[0]:
            seconds /= PREDICTIONS
        if keep:
            timed.seconds[label].append(seconds)
            if device.type == 'cuda':
                peak = torch.cuda.max_memory_allocated(device) - before + timed.own_bytes
                timed.peaks[label] = max(timed.peaks[label], peak)


def summarize(timed: Timed, first: Timed, label: str) -> ModelTiming:
    """Summarize the rounds of one pass by medians.

    Args:
        timed: The model.
        first: The model that ratios refer to.
        label: The pass.
    """
    seconds, base = timed.seconds[label], first.seconds[label]
    peak, base_peak = timed.peaks[label], first.peaks[label]
    return ModelTiming(
        ms=1e3 * statistics.median(seconds),
        ms_min_max=(1e3 * min(seconds), 1e3 * max(seconds)),
        time_over_first=statistics.median(t / b for t, b in zip(seconds, base, strict=True)),
        peak_bytes=peak or None,
        peak_over_first=peak / base_peak if base_peak else None,
    )


def train_in_turns(
    names: Sequence[str],
    size: tuple[int, int],
    batch: int,
    rounds: int,
    dtype: str,
    device: torch.device,
) -> list[TrainingRow]:
    """Time the training steps of models in turns, and their predictions of one image.

    Args:
        names: Configs of mmsegmentation; ratios are to the first that can be timed.
        size: (H, W) of the images.
        batch: Images of a step.
        rounds: Timed rounds.
        dtype: Name of the precision of a step; predictions are in float32.
        device: Where the models run.

    Returns:
        A row for each.

    Raises:
        ToolError: A config that cannot be read, is not of mmsegmentation or has no optimizer.
    """
    configs = [read_config(name) for name in names]
    for name, cfg in zip(names, configs, strict=True):
        if cfg.default_scope != 'mmseg' or not cfg.get('optim_wrapper'):
            raise ToolError(
                f'--train-step: expected a config of mmsegmentation with an optim_wrapper, '
                f'got {name}'
            )
    rows = [TrainingRow(name, dtype) for name in names]
    live: list[Timed] = []
    for i, (row, cfg) in enumerate(zip(rows, configs, strict=True)):
        print(f'[{i + 1}/{len(rows)}] first steps of {row.config}', file=sys.stderr, flush=True)
        found = prepare(row, partial(Trainee, cfg, batch, size, dtype, device), device)
        if isinstance(found, NotTimed):
            row.passes = dict.fromkeys(TRAINING_PASSES, found)
        else:
            live.append(found)
    for i in range(rounds + 1):
        print(f'[{i}/{rounds}] steps in {dtype}', file=sys.stderr, flush=True)
        for timed in list(live):
            try:
                time_once(timed, device, keep=i > 0)
            except Exception as error:  # such as no memory, now that the others hold some
                timed.row.passes = dict.fromkeys(TRAINING_PASSES, NotTimed(reason_of(error)))
                live.remove(timed)
    for timed in live:
        timed.row.passes = {label: summarize(timed, live[0], label) for label in TRAINING_PASSES}
    return rows


def training_table(rows: Sequence[TrainingRow]) -> str:
    """Return the rows in Markdown; in brackets are ratios to the first that was timed."""
    lines = []
    for row in rows:
        line = [Path(row.config).stem, row.dtype]
        for label in TRAINING_PASSES:
            found = row.passes[label]
            if isinstance(found, NotTimed):
                line += [f'not timed: {found.reason}', '-']
                continue
            ratio = number(found.peak_over_first, '.2f')
            memory = f'{found.peak_bytes / 2**20:,.0f} ({ratio}x)' if found.peak_bytes else '-'
            line += [f'{milliseconds(found.ms)} ({found.time_over_first:.2f}x)', memory]
        lines.append([*line, number(row.loss, '.3g')])
    head = ['model', 'dtype']
    for label in TRAINING_PASSES:
        head += [label, 'peak MiB']
    return markdown_table([*head, 'loss'], lines, texts=2)
