"""The whole models that `benchmark.py --models` compares."""

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import sapa_mm  # noqa: F401  registers what configs name

from ..complexity.count import build, count
from ..configs import read_config, reason
from ..errors import ToolError
from ..output import markdown_table
from .report import milliseconds


def compare(
    names: Sequence[str],
    size: tuple[int, int],
    batch: int,
    rounds: int,
    device: torch.device,
    seconds: Callable[[Callable[[], object]], tuple[float, float]],
) -> list[dict]:
    """Time the predictions of models in turns, from the images to the classes, and count them.

    Args:
        names: Configs; ratios are to the first.
        size: (H, W) of the images.
        batch: Images of a call.
        rounds: Timed rounds.
        device: Where.
        seconds: Times a call.

    Returns:
        A row for each.

    Raises:
        ToolError: A config that cannot be read, or whose model cannot be built or run.
    """
    configs = [read_config(name) for name in names]
    images = torch.randn(batch, 3, *size, device=device)
    counted, calls = [], []
    for name, cfg in zip(names, configs, strict=True):
        try:
            counted.append(count(cfg, size))
            samples = None
            if cfg.default_scope == 'mmdet':
                from mmdet.structures import DetDataSample

                shapes = ('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape')
                meta = {**dict.fromkeys(shapes, size), 'scale_factor': (1.0, 1.0)}
                samples = [DetDataSample(metainfo=meta) for _ in range(batch)]
            calls.append(partial(build(cfg).to(device), images, samples, mode='predict'))
        except Exception as error:  # of whatever kind: the model is the user's
            raise ToolError(f'{name}: {reason(error)}') from error
    times: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        for i in range(rounds + 1):
            for name, call, taken in zip(names, calls, times, strict=True):
                try:
                    found, _ = seconds(call)
                except Exception as error:
                    raise ToolError(f'{name}: {reason(error)}') from error
                if i:  # the first round warms up
                    taken.append(found)
                print(f'[{i}/{rounds}] {name}', file=sys.stderr, flush=True)
    return [
        {
            'config': name,
            'parameters': found.params,
            'flops': found.flops,
            'ms': 1e3 * statistics.median(taken),
            'ms_min_max': [1e3 * min(taken), 1e3 * max(taken)],
            'time_over_first': statistics.median(
                t / first for t, first in zip(taken, times[0], strict=True)
            ),
            'flops_over_first': found.flops / counted[0].flops,
        }
        for name, found, taken in zip(names, counted, times, strict=True)
    ]


def table(rows: Sequence[dict]) -> str:
    """The rows in Markdown."""
    cells = [
        [
            Path(row['config']).stem,
            f'{row["parameters"]:,}',
            f'{row["flops"] / 1e9:.1f} ({row["flops_over_first"]:.2f}x)',
            f'{milliseconds(row["ms"])} ({row["time_over_first"]:.2f}x)',
        ]
        for row in rows
    ]
    return markdown_table(['model', 'parameters', 'GFLOPs', 'ms'], cells, texts=1)
