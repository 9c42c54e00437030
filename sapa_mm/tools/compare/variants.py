"""What is known of the variants of a comparison, and how a report shows their metrics."""

import math
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from .history import History


class Metric(NamedTuple):
    """A metric, as the report shows it.

    Attributes:
        label: What the report calls it.
        factor: What a test's figure is multiplied by: COCO gives shares, which become percent.
        unit: Of the figures.
        decimals: How many are shown.
        less_is_better: Whether it is an error.
    """

    label: str
    factor: float = 1
    unit: str = '%'
    decimals: int = 2
    less_is_better: bool = False


def _error(label: str, unit: str = '', decimals: int = 3) -> Metric:
    return Metric(label, 1, unit, decimals, less_is_better=True)


# The table shows these metrics, in this order, where the test gives them.
METRICS = {
    'mIoU': Metric('mIoU'),
    'mBIoU': Metric('boundary IoU'),
    'mBIoU-4px': Metric('boundary IoU, 4 px'),
    'mBIoU-2px': Metric('boundary IoU, 2 px'),
    'aAcc': Metric('pixel accuracy'),
    'coco/bbox_mAP': Metric('box AP', 100),
    'coco/segm_mAP': Metric('mask AP', 100),
    'SAD': _error('SAD', 'thousands', 3),
    'MSE': _error('MSE', decimals=4),
    'Grad': _error('Grad', 'thousands', 3),
    'Conn': _error('Conn', 'thousands', 3),
    'abs_rel': _error('abs rel', decimals=4),
    'dbe_comp': _error('edge completeness', 'px'),
    'dbe_acc': _error('edge accuracy', 'px'),
    'rmse': _error('RMSE', 'm'),
    'd1': Metric('δ1', 1, '', 4),
    'd2': Metric('δ2', 1, '', 4),
    'd3': Metric('δ3', 1, '', 4),
    'sq_rel': _error('sq rel', decimals=4),
    'rmse_log': _error('RMSE log', decimals=4),
    'log10': _error('log10', decimals=4),
    'silog': _error('SILog', decimals=2),
}


class Variant(NamedTuple):
    """Holds what is known of an upsampler.

    Attributes:
        name: Its name.
        results: What its finished runs measured, by seed.
        cost: Its row of `benchmark.py --models`.
        histories: What the logs of its finished runs say, by seed.
        length: How long it trains, such as '600 iterations'.
        disturbed: In what way runs were disturbed, by seed.
    """

    name: str
    results: Mapping[int, dict[str, Any]]
    cost: dict[str, Any]
    histories: Mapping[int, History] = MappingProxyType({})
    length: str = ''
    disturbed: Mapping[int, str] = MappingProxyType({})


def values(variant: Variant, metric: str) -> list[float]:
    """Return a metric of all seeds, in its unit."""
    return [value(result, metric) for result in variant.results.values()]


def value(result: Mapping[str, Any], metric: str) -> float:
    """Return a metric of a run, in its unit."""
    return METRICS[metric].factor * result['metrics'][metric]


def deviation(numbers: Sequence[float]) -> float:
    """Return the sample standard deviation of at least two numbers; NaN if one is not finite."""
    return statistics.stdev(numbers) if all(map(math.isfinite, numbers)) else math.nan


def mean_and_spread(numbers: Sequence[float], decimals: int, sign: str = '') -> str:
    """Format 'mean ± sample standard deviation', the latter where there are at least two.

    Args:
        numbers: At least one.
        decimals: How many are shown.
        sign: '+' to give a positive mean its sign.
    """
    mean = f'{statistics.mean(numbers):{sign}.{decimals}f}'
    if len(numbers) == 1:
        return mean
    return f'{mean} ± {deviation(numbers):.{decimals}f}'


def shown_metrics(variants: Sequence[Variant]) -> list[str]:
    """Return the known metrics that every finished run has."""
    found = [result['metrics'] for v in variants for result in v.results.values()]
    return [name for name in METRICS if found and all(name in metrics for metrics in found)]


def heading(metric: str) -> str:
    """Return what a metric is called, and of an error which way is better."""
    label, unit = METRICS[metric].label, METRICS[metric].unit
    text = f'{label} ({unit})' if unit not in ('', '%') else label
    return f'{text} ↓' if METRICS[metric].less_is_better else text


def axis_label(metric: str) -> str:
    """Return what an axis of a plot calls a metric."""
    label, unit = METRICS[metric].label, METRICS[metric].unit
    return f'{label} ({unit})' if unit else label


def style(index: int) -> dict[str, Any]:
    """Return colour, marker and line of a variant in plots, which differ for a hundred of them.

    Args:
        index: The variant's place among all.
    """
    turn = index // 10
    return dict(
        color=f'C{index % 10}',
        marker='osD^v<>ph*'[(index + turn) % 10],
        linestyle=('-', '--', ':', '-.')[turn % 4],
    )
