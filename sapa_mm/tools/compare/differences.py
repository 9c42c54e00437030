"""Compares variants with a baseline, seed by seed."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

from ..output import markdown_table
from .variants import METRICS, Variant, deviation, heading, mean_and_spread, value

# Of the interval that a mean difference is given.
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Holds a variant's differences from the baseline in a metric, and what they say.

    Attributes:
        by_seed: The differences.
        interval: The two-sided 95 % interval of their mean; None with fewer than two seeds.
        verdict: 'gain' or 'loss' if the interval excludes 0, or 'undecided', or 'one seed'.
    """

    by_seed: dict[int, float]
    interval: tuple[float, float] | None
    verdict: str


def interval_of_mean(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the two-sided 95 % interval of a mean, by Student's t.

    Args:
        numbers: At least two, taken as independent and normally distributed.

    Returns:
        mean ± t(0.975, n - 1) · s / √n, where s is the sample standard deviation.
    """
    count = len(numbers)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation(numbers)
    mean, half = statistics.mean(numbers), half / count**0.5
    return mean - half, mean + half


def difference(variant: Variant, baseline: Variant, metric: str) -> Difference | None:
    """Compare a variant with the baseline over the seeds that both have.

    Args:
        variant: It.
        baseline: What its figures are compared with.
        metric: One of `METRICS`.

    Returns:
        Variant less baseline; None if they share no seed.
    """
    seeds = sorted(variant.results.keys() & baseline.results.keys())
    if not seeds:
        return None
    by_seed = {
        seed: value(variant.results[seed], metric) - value(baseline.results[seed], metric)
        for seed in seeds
    }
    if len(seeds) == 1:
        return Difference(by_seed, None, 'one seed')
    low, high = interval_of_mean(list(by_seed.values()))
    better = -1 if METRICS[metric].less_is_better else 1
    verdict = 'undecided'  # also where a bound is NaN
    if low > 0 or high < 0:
        verdict = 'gain' if better * low > 0 else 'loss'
    return Difference(by_seed, (low, high), verdict)


def differences_table(variants: Sequence[Variant], baseline: Variant, metric: str) -> str | None:
    """Write the table of the differences from the baseline in a metric.

    Args:
        variants: All; the baseline may be among them.
        baseline: What the others are compared with.
        metric: One of `METRICS`.

    Returns:
        The table; None if there is nothing to compare.
    """
    found = {
        v.name: d
        for v in variants
        if v.name != baseline.name and (d := difference(v, baseline, metric))
    }
    if not found:
        return None
    seeds = sorted({seed for d in found.values() for seed in d.by_seed})
    signed = f'+.{METRICS[metric].decimals}f'
    rows = []
    for name, (by_seed, interval, verdict) in found.items():
        cells = [f'{by_seed[seed]:{signed}}' if seed in by_seed else '-' for seed in seeds]
        cells.append(mean_and_spread(list(by_seed.values()), METRICS[metric].decimals, sign='+'))
        cells.append(f'{interval[0]:{signed}} to {interval[1]:{signed}}' if interval else '-')
        rows.append([name, *cells, verdict])
    head = [f'{heading(metric)}, less {baseline.name}', *(f'seed {seed}' for seed in seeds)]
    return markdown_table([*head, 'mean', '95 % interval', 'verdict'], rows, texts=1)
