"""Writes the report of `compare.py`: a table, a plot, pictures, as Markdown and HTML."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from matplotlib import colormaps
from matplotlib.figure import Figure

from ..output import markdown_table, write_atomically, write_text


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
STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { border: 1px solid #bbb; padding: .3em .7em }
img { max-width: 100% }
"""


class Variant(NamedTuple):
    """Holds what is known of an upsampler.

    Attributes:
        name: Its name.
        results: What its finished runs measured, by seed.
        cost: Its row of `benchmark.py --models`.
    """

    name: str
    results: Mapping[int, dict[str, Any]]
    cost: dict[str, Any]


def values(variant: Variant, metric: str) -> list[float]:
    """Return a metric of all seeds, in its unit."""
    return [value(result, metric) for result in variant.results.values()]


def value(result: Mapping[str, Any], metric: str) -> float:
    """Return a metric of a run, in its unit."""
    return METRICS[metric].factor * result['metrics'][metric]


def mean_and_spread(numbers: Sequence[float], decimals: int) -> str:
    """Format 'mean ± sample standard deviation', the latter where there are at least two."""
    mean = f'{statistics.mean(numbers):.{decimals}f}'
    if len(numbers) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(numbers):.{decimals}f}'


def shown_metrics(variants: Sequence[Variant]) -> list[str]:
    """Return the known metrics that every finished run has."""
    found = [result['metrics'] for v in variants for result in v.results.values()]
    return [name for name in METRICS if found and all(name in metrics for metrics in found)]


def heading(metric: str) -> str:
    """Return what a metric is called, and of an error which way is better."""
    label, unit = METRICS[metric].label, METRICS[metric].unit
    text = f'{label} ({unit})' if unit not in ('', '%') else label
    return f'{text} ↓' if METRICS[metric].less_is_better else text


def main_table(variants: Sequence[Variant]) -> str:
    """Write the table of means and costs."""
    metrics = shown_metrics(variants)
    heads = ['upsampler', 'seeds', *(heading(name) for name in metrics)]
    heads += ['parameters', 'GFLOPs', 'latency', 'training memory', 'iteration']
    rows = []
    for v in variants:
        cells = [v.name, str(len(v.results))]
        cells += [
            mean_and_spread(values(v, name), METRICS[name].decimals) if v.results else '-'
            for name in metrics
        ]
        cost = v.cost
        cells += [f'{cost["parameters"]:,}', f'{cost["flops"] / 1e9:.2f}']
        cells.append(f'{cost["ms"]:.1f} ms ({cost["time_over_first"]:.2f}x)')
        memory = [result['memory'] / 2**20 for result in v.results.values()]
        seconds = [r['seconds'] for r in v.results.values() if r['seconds']]
        cells.append(f'{max(memory):,.0f} MiB' if memory else '-')
        cells.append(f'{statistics.median(seconds):.2f} s' if seconds else '-')
        rows.append(cells)
    return markdown_table(heads, rows, texts=1)


def seeds_table(variants: Sequence[Variant], metric: str) -> str:
    """Write the table of one metric, a column a seed."""
    seeds = sorted({seed for v in variants for seed in v.results})
    decimals = METRICS[metric].decimals
    rows = [
        [
            v.name,
            *(
                f'{value(v.results[seed], metric):.{decimals}f}' if seed in v.results else '-'
                for seed in seeds
            ),
        ]
        for v in variants
    ]
    return markdown_table([heading(metric), *(f'seed {seed}' for seed in seeds)], rows, texts=1)


def comparisons(variants: Sequence[Variant], metric: str) -> list[str]:
    """Say in sentences what is best, and against which others SAPA loses, seed by seed."""
    done = [v for v in variants if v.results]
    label, *_, decimals, less_is_better = METRICS[metric]
    sign, relation = (-1, ' < ') if less_is_better else (1, ' > ')
    ranked = sorted(done, key=lambda v: -sign * statistics.mean(values(v, metric)))
    lines = [f'By mean {label}: {relation.join(v.name for v in ranked)}.', '']
    for sapa in (v for v in done if v.name.startswith('sapa')):
        for other in (v for v in done if not v.name.startswith('sapa')):
            seeds = sapa.results.keys() & other.results.keys()
            gains = [
                sign * (value(sapa.results[s], metric) - value(other.results[s], metric))
                for s in sorted(seeds)
            ]
            if gains and (mean := statistics.mean(gains)) < 0:
                lost = sum(gain < 0 for gain in gains)
                lines.append(
                    f'- {sapa.name} loses to {other.name} by {-mean:.{decimals}f} '
                    f'({lost} of {len(gains)} seeds).'
                )
    return lines


def plot(path: Path, variants: Sequence[Variant], metric: str) -> None:
    """Draw the metric over GFLOPs and over latency, a ratio, as it was measured.

    Args:
        path: File to write; the suffix gives the format.
        variants: With a result each.
        metric: One of `METRICS`.
    """
    figure = Figure(figsize=(9.5, 4.2), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    colours = colormaps['tab10']
    panels = {
        'GFLOPs of one image': lambda v: v.cost['flops'] / 1e9,
        f'latency of one image, times that of {variants[0].name}': (
            lambda v: v.cost['time_over_first'] / variants[0].cost['time_over_first']
        ),
    }
    for axis, (label, cost) in zip(axes, panels.items(), strict=True):
        for i, v in enumerate(variants):
            numbers = values(v, metric)
            spread = statistics.stdev(numbers) if len(numbers) > 1 else None
            axis.errorbar(
                cost(v),
                statistics.mean(numbers),
                yerr=spread,
                fmt='osD^v<>ph*'[i % 10],
                color=colours(i % 10),
                capsize=3,
                label=v.name,
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    label, unit = METRICS[metric].label, METRICS[metric].unit
    name = f'{label} ({unit})' if unit else label
    axes[0].set_ylabel(f'{name}, mean and standard deviation')
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=5, frameon=False)
    write_atomically(path, lambda part: figure.savefig(part, dpi=150))


def write_report(
    folder: Path, title: str, notes: Sequence[str], variants: Sequence[Variant], pictures: bool
) -> list[Path]:
    """Write report.md, report.html and accuracy_over_cost.png.

    Args:
        folder: Where.
        title: Of the report.
        notes: Paragraphs on what was run where.
        variants: All that are compared; not all need results.
        pictures: Whether there is a pictures.png to show.

    Returns:
        The files.
    """
    done = [v for v in variants if v.results]
    metrics = shown_metrics(variants)
    lines = [f'# {title}', '']
    for note in notes:
        lines += [note, '']
    lines += [main_table(variants), '']
    files = []
    if metrics:
        path = folder / 'accuracy_over_cost.png'
        plot(path, done, metrics[0])
        files.append(path)
        lines += [f'![{METRICS[metrics[0]].label} over the cost of an image]({path.name})', '']
        for metric in metrics[:4]:
            lines += [*comparisons(variants, metric), '']
        lines += ['## Every seed', '']
        for metric in metrics:
            lines += [seeds_table(variants, metric), '']
    if pictures:
        lines += ['## Predictions', '', '![Images and predictions side by side](pictures.png)', '']
    text = '\n'.join(lines)
    body = MarkdownIt('commonmark').enable('table').render(text)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n'
    )
    for name, content in (('report.md', text), ('report.html', page)):
        write_text(folder / name, content)
        files.append(folder / name)
    return files
