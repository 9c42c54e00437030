"""Writes the report of `compare.py`: a table, a plot, pictures, as Markdown and HTML."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from ..output import markdown_table, write_atomically, write_text
from .curves import curves_table, plot_curves, training_seconds
from .differences import differences_table
from .record import write_record
from .variants import (
    METRICS,
    Variant,
    axis_label,
    deviation,
    heading,
    mean_and_spread,
    shown_metrics,
    style,
    value,
    values,
)

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { border: 1px solid #bbb; padding: .3em .7em }
img { max-width: 100% }
"""
# What every variant gets the same of, as headings call it.
BUDGETS = {'iterations': 'Equal iterations', 'time': 'Equal training time'}
DAGGER = ' †'


def main_table(variants: Sequence[Variant], training: bool = False) -> str:
    """Write the table of means and costs.

    Args:
        variants: All.
        training: Whether it says how long each trained.
    """
    metrics = shown_metrics(variants)
    heads = ['upsampler', 'seeds', *(heading(name) for name in metrics)]
    heads += ['trained', 'training time'] if training else []
    heads += ['parameters', 'GFLOPs', 'latency', 'training memory', 'iteration']
    rows = []
    for v in variants:
        cells = [v.name + (DAGGER if v.disturbed else ''), str(len(v.results))]
        cells += [
            mean_and_spread(values(v, name), METRICS[name].decimals) if v.results else '-'
            for name in metrics
        ]
        if training:
            trained = training_seconds(v)
            cells += [v.length, '-' if trained is None else f'{trained:,.0f} s']
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
                f'{value(v.results[seed], metric):.{decimals}f}'
                f'{DAGGER if seed in v.disturbed else ""}'
                if seed in v.results
                else '-'
                for seed in seeds
            ),
        ]
        for v in variants
    ]
    return markdown_table([heading(metric), *(f'seed {seed}' for seed in seeds)], rows, texts=1)


def ranking(variants: Sequence[Variant], metric: str) -> str:
    """Say in a sentence in what order variants are by a metric."""
    sign, relation = (1, ' < ') if METRICS[metric].less_is_better else (-1, ' > ')
    done = [v for v in variants if v.results]
    ranked = sorted(done, key=lambda v: sign * statistics.mean(values(v, metric)))
    return f'By mean {METRICS[metric].label}: {relation.join(v.name for v in ranked)}.'


def plot(path: Path, variants: Sequence[Variant], metric: str) -> None:
    """Draw the metric over GFLOPs and over latency, a ratio, as it was measured.

    Args:
        path: File to write; the suffix gives the format.
        variants: At least one has a result.
        metric: One of `METRICS`.
    """
    figure = Figure(figsize=(9.5, 4.2), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    first = next(v for v in variants if v.results)
    panels = {
        'GFLOPs of one image': lambda v: v.cost['flops'] / 1e9,
        f'latency of one image, times that of {first.name}': (
            lambda v: v.cost['time_over_first'] / first.cost['time_over_first']
        ),
    }
    for axis, (label, cost) in zip(axes, panels.items(), strict=True):
        for i, v in enumerate(variants):
            numbers = values(v, metric)
            if not numbers:
                continue
            spread = deviation(numbers) if len(numbers) > 1 else None
            axis.errorbar(
                cost(v),
                statistics.mean(numbers),
                yerr=spread,
                capsize=3,
                label=v.name,
                **{**style(i), 'linestyle': 'none'},
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f'{axis_label(metric)}, mean and standard deviation')
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=5, frameon=False)
    write_atomically(path, lambda part: figure.savefig(part, dpi=150))


def footnote(variants: Sequence[Variant]) -> list[str]:
    """Return the lines that name the disturbed runs, or none."""
    found = [
        f'- {v.name}, seed {seed}: {what}.'
        for v in variants
        for seed, what in sorted(v.disturbed.items())
    ]
    if not found:
        return []
    head = 'Something, such as other work, disturbed these runs; the median time of an iteration'
    return [f'† {head} was', '', *found, '']


def budget_section(
    variants: Sequence[Variant], baseline: str, training: bool, plotted: Path | None, level: str
) -> list[str]:
    """Write the tables of a budget.

    Args:
        variants: All.
        baseline: Name of the one that the others are compared with.
        training: Whether the main table says how long each trained.
        plotted: The plot of accuracy over cost, if it belongs here.
        level: Marks of the headings.

    Returns:
        Lines.
    """
    metrics = shown_metrics(variants)
    lines = [main_table(variants, training), '', *footnote(variants)]
    if plotted:
        lines += [f'![{METRICS[metrics[0]].label} over the cost of an image]({plotted.name})', '']
    against = next((v for v in variants if v.name == baseline), variants[0])
    for metric in metrics[:4]:
        lines += [ranking(variants, metric), '']
        if table := differences_table(variants, against, metric):
            lines += [table, '']
    if metrics:
        lines += [f'{level} Every seed', '']
    for metric in metrics:
        lines += [seeds_table(variants, metric), '']
    return lines


def time_section(folder: Path, budgets: Mapping[str, Sequence[Variant]], metric: str) -> list[str]:
    """Write accuracy_over_time.png and what the report says of it.

    Args:
        folder: Where.
        budgets: All variants by the budget's heading.
        metric: One of `METRICS`.

    Returns:
        Lines; none without validations in the logs.
    """
    path = folder / 'accuracy_over_time.png'
    if not plot_curves(path, budgets, metric):
        path.unlink(missing_ok=True)
        return []
    lines = ['## Accuracy over training time', '']
    lines += [f'![{METRICS[metric].label} of validation over seconds of training]({path.name})', '']
    for title, variants in budgets.items():
        if table := curves_table(variants, metric):
            lines += [f'{title}, at shares of the time of the fastest:', '', table, '']
    return lines


def write_report(
    folder: Path,
    title: str,
    notes: Sequence[str],
    budgets: Mapping[str, Sequence[Variant]],
    pictures: bool,
    baseline: str = 'bilinear',
) -> list[Path]:
    """Write report.md, .html and .json, accuracy_over_cost.png and accuracy_over_time.png.

    Args:
        folder: Where.
        title: Of the report.
        notes: Paragraphs on what was run where.
        budgets: All that are compared, not all of which need results, by a key of `BUDGETS`.
        pictures: Whether there is a pictures.png to show.
        baseline: The variant that the others are compared with; if it is none of them, the first.

    Returns:
        The files.
    """
    lines = [f'# {title}', '']
    for note in notes:
        lines += [note, '']
    files: list[Path] = []
    plain = list(budgets) == ['iterations']
    for budget, variants in budgets.items():
        path = None
        if (metrics := shown_metrics(variants)) and not files:
            path = folder / 'accuracy_over_cost.png'
            plot(path, variants, metrics[0])
            files.append(path)
        lines += [] if plain else [f'## {BUDGETS[budget]}', '']
        level = '##' if plain else '###'
        lines += budget_section(variants, baseline, budget == 'time', path, level)
    shown = shown_metrics([v for variants in budgets.values() for v in variants])
    if shown:
        titled = {BUDGETS[budget]: variants for budget, variants in budgets.items()}
        found = time_section(folder, titled, shown[0])
        files += [folder / 'accuracy_over_time.png'] if found else []
        lines += found
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
    write_record(folder / 'report.json', notes, budgets)
    return [*files, folder / 'report.json']
