"""The comparison of whole models."""

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..complexity.count import Complexity, blank_sample, build, count, input_channels
from ..configs import is_matting, read_config, reason
from ..errors import ToolError
from ..output import markdown_table
from .report import milliseconds
from .rows import ModelRow

if TYPE_CHECKING:
    from mmengine.config import Config


def prediction(
    cfg: 'Config', batch: int, size: tuple[int, int], device: torch.device
) -> Callable[[], object]:
    """Build a model and return the call that predicts from images, with all that is behind it.

    Args:
        cfg: Config of the model, which gets random weights.
        batch: Images of a call, which are noise.
        size: (H, W) of the images.
        device: Where the model is to run.
    """
    model = build(cfg).to(device)
    images = torch.randn(batch, input_channels(model), *size, device=device)
    samples = None
    if is_matting(cfg):
        from ...matting import UNKNOWN, trimap_sample

        trimap = np.full(size, UNKNOWN, np.uint8)
        samples = [trimap_sample(trimap).to(device) for _ in images]
    elif cfg.default_scope == 'mmdet':
        samples = [blank_sample('mmdet', size) for _ in images]
    return partial(model, images, samples, mode='predict')


def time_in_turns(
    names: Sequence[str],
    calls: Sequence[Callable[[], object]],
    rounds: int,
    seconds: Callable[[Callable[[], object]], tuple[float, float]],
) -> list[list[float]]:
    """Time calls in turns, after a round that warms up.

    Args:
        names: What messages call them.
        calls: The calls.
        rounds: Timed rounds.
        seconds: What times a call: returns its seconds, and those to launch it.

    Returns:
        The seconds of every round, for each call.

    Raises:
        ToolError: A call failed.
    """
    times: list[list[float]] = [[] for _ in calls]
    for i in range(rounds + 1):
        for name, call, taken in zip(names, calls, times, strict=True):
            try:
                found, _ = seconds(call)
            except Exception as error:  # whatever it is: the model is the user's
                raise ToolError(f'{name}: {reason(error)}') from error
            if i:
                taken.append(found)
            print(f'[{i}/{rounds}] {name}', file=sys.stderr, flush=True)
    return times


def compare(
    names: Sequence[str],
    size: tuple[int, int],
    batch: int,
    rounds: int,
    device: torch.device,
    seconds: Callable[[Callable[[], object]], tuple[float, float]],
) -> list[ModelRow]:
    """Time the predictions of models in turns, from the images to the classes, and count them.

    Args:
        names: Configs; ratios are to the first.
        size: (H, W) of the images.
        batch: Images of a call.
        rounds: Timed rounds.
        device: Where the models run.
        seconds: What times a call: returns its seconds, and those to launch it.

    Returns:
        A row for each.

    Raises:
        ToolError: A config that cannot be read, or whose model cannot be built or run.
    """
    configs = [read_config(name) for name in names]
    counted: list[Complexity] = []
    calls: list[Callable[[], object]] = []
    for name, cfg in zip(names, configs, strict=True):
        try:
            counted.append(count(cfg, size))
            calls.append(prediction(cfg, batch, size, device))
        except Exception as error:  # whatever it is: the model is the user's
            raise ToolError(f'{name}: {reason(error)}') from error
    with torch.no_grad():
        times = time_in_turns(names, calls, rounds, seconds)
    return [
        ModelRow(
            config=name,
            parameters=found.params,
            flops=found.flops,
            ms=1e3 * statistics.median(taken),
            ms_min_max=(1e3 * min(taken), 1e3 * max(taken)),
            time_over_first=statistics.median(
                t / first for t, first in zip(taken, times[0], strict=True)
            ),
            flops_over_first=found.flops / counted[0].flops,
        )
        for name, found, taken in zip(names, counted, times, strict=True)
    ]


def table(rows: Sequence[ModelRow]) -> str:
    """Return the rows in Markdown."""
    cells = [
        [
            Path(row.config).stem,
            f'{row.parameters:,}',
            f'{row.flops / 1e9:.1f} ({row.flops_over_first:.2f}x)',
            f'{milliseconds(row.ms)} ({row.time_over_first:.2f}x)',
        ]
        for row in rows
    ]
    return markdown_table(['model', 'parameters', 'GFLOPs', 'ms'], cells, texts=1)
