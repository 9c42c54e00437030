"""Shows accuracy over the time of training."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..output import markdown_table, write_atomically
from .variants import METRICS, Variant, axis_label, heading, style

# Points of a curve, of seconds of training and a metric after them.
Curve = list[tuple[float, float]]
SHARES = (25, 50, 75, 100)


def curve(variant: Variant, metric: str) -> Curve:
    """Return the mean curve over a variant's seeds, at the validations that all of them have.

    Args:
        variant: It.
        metric: One of `METRICS`, which the records of validations may name with a prefix.
    """
    histories = [history for history in variant.histories.values() if history.times]
    found = [
        {
            step: record[key]
            for step, record in history.validations.items()
            for key in record
            if key == metric or key.endswith(f'/{metric}')
        }
        for history in histories
    ]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    return [
        (
            statistics.mean(history.seconds(step) or 0 for history in histories),
            METRICS[metric].factor * statistics.mean(named[step] for named in found),
        )
        for step in steps
    ]


def training_seconds(variant: Variant) -> float | None:
    """Return the seconds that a variant trained, by the mean over its seeds; None if unknown."""
    found = [history.seconds(history.end) for history in variant.histories.values()]
    known = [seconds for seconds in found if seconds is not None]
    return statistics.mean(known) if known else None


def at(points: Curve, seconds: float) -> float | None:
    """Interpolate a curve linearly; None outside of it."""
    for (t0, v0), (t1, v1) in itertools.pairwise(points):
        if t0 <= seconds <= t1:
            return v0 + (v1 - v0) * (seconds - t0) / (t1 - t0)
    return points[0][1] if points and points[0][0] == seconds else None


def curves_table(variants: Sequence[Variant], metric: str) -> str | None:
    """Write the table of a metric after shares of the time that the fastest variant trained.

    Args:
        variants: All.
        metric: One of `METRICS`.

    Returns:
        The table; None if no curve has two points.
    """
    curves = {v.name: points for v in variants if len(points := curve(v, metric)) > 1}
    times = [s for v in variants if v.name in curves and (s := training_seconds(v))]
    if not times:
        return None
    moments = [min(times) * (share / 100) for share in SHARES]
    rows = []
    for name, points in curves.items():
        found = [at(points, moment) for moment in moments]
        decimals = METRICS[metric].decimals
        rows.append([name, *('-' if v is None else f'{v:.{decimals}f}' for v in found)])
    heads = [f'{m:,.{0 if m >= 100 else 1}f} s' for m in moments]
    return markdown_table([heading(metric), *heads], rows, texts=1)


def plot_curves(path: Path, budgets: Mapping[str, Sequence[Variant]], metric: str) -> bool:
    """Draw a metric of the validations over the seconds of training, a panel for every budget.

    Args:
        path: File to write; the suffix gives the format.
        budgets: Variants by the panel's title.
        metric: One of `METRICS`.

    Returns:
        Whether there was anything to draw.
    """
    curves = {
        title: [(i, v.name, curve(v, metric)) for i, v in enumerate(variants)]
        for title, variants in budgets.items()
    }
    curves = {title: lines for title, lines in curves.items() if any(line[2] for line in lines)}
    if not curves:
        return False
    figure = Figure(figsize=(5.5 + 4 * (len(curves) - 1), 4.2), layout='constrained')
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    shown = {}
    for axis, (title, lines) in zip(axes, curves.items(), strict=True):
        for i, name, points in lines:
            if points:
                (shown[name],) = axis.plot(*zip(*points, strict=True), markersize=4, **style(i))
        axis.set_title(title)
        axis.set_xlabel('seconds of training')
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f'{axis_label(metric)} of validation')
    figure.legend(shown.values(), shown.keys(), loc='outside lower center', ncols=5, frameon=False)
    write_atomically(path, lambda part: figure.savefig(part, dpi=150))
    return True
