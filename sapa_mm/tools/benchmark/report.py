"""What `benchmark.py` prints and writes."""

import contextlib
import datetime
import importlib
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import sapa_mm

from ..output import markdown_table, write_atomically
from .candidates import BILINEAR, OURS, PASSES, Shape


def environment(device: torch.device) -> dict[str, object]:
    """Date, device, versions, and the settings that change what is measured."""
    found = {'date': datetime.date.today().isoformat()}
    if device.type == 'cuda':
        found['device'] = torch.cuda.get_device_name(device)
    else:
        lines = Path('/proc/cpuinfo').read_text().splitlines() if sys.platform == 'linux' else []
        models = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        name = models[0] if models else 'CPU'
        found['device'] = f'{name}, {torch.get_num_threads()} threads'
    found['torch'] = torch.__version__
    with contextlib.suppress(ImportError):
        found['triton'] = importlib.import_module('triton').__version__
    found['sapa_mm'] = sapa_mm.__version__
    if device.type == 'cuda':
        found['cuda'] = torch.version.cuda or f'HIP {torch.version.hip}'
    found['float32_matmul_precision'] = torch.get_float32_matmul_precision()
    found['autotune'] = os.environ.get('SAPA_MM_AUTOTUNE', '1')
    return found


def summarize(
    least_bytes: int,
    times: list[tuple[float, float]],
    bases: dict[str, list[tuple[float, float]]],
    copies: list[float],
) -> dict[str, object]:
    """Figures of one candidate and pass: medians over the rounds.

    Args:
        least_bytes: That a call must move.
        times: Seconds of the device, and to launch, by round.
        bases: The same of the candidates to compare with.
        copies: Bytes per second of a copy, by round.
    """
    seconds = [t for t, _ in times]

    def ratio(base: str) -> float | None:
        if base not in bases:
            return None
        return statistics.median(t / b for t, (b, _) in zip(seconds, bases[base], strict=True))

    shares = [least_bytes / t / copy for t, copy in zip(seconds, copies, strict=True)]
    return {
        'ms': 1e3 * statistics.median(seconds),
        'ms_min_max': [1e3 * min(seconds), 1e3 * max(seconds)],
        'launch_ms': 1e3 * statistics.median(launch for _, launch in times),
        'time_over_sapa_mm': ratio(OURS),
        'time_over_bilinear': ratio(BILINEAR),
        'least_bytes': least_bytes,
        'gb_per_s': least_bytes / statistics.median(seconds) / 1e9,
        'copy_gb_per_s': statistics.median(copies) / 1e9,
        'of_copy': statistics.median(shares),
    }


def groups(rows: Sequence[dict]) -> dict[tuple[str, str], list[dict]]:
    """Rows by dtype and layout, in order."""
    found: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        found.setdefault((row['dtype'], row['layout']), []).append(row)
    return found


def number(value: float | None, form: str) -> str:
    """Format a number that may be missing."""
    return '-' if value is None else format(value, form)


def milliseconds(value: float) -> str:
    """Three digits or more."""
    return f'{value:.1f} ms' if value >= 10 else f'{value:.3f} ms'


def cells(record: dict, ours: dict) -> list[str]:
    """Cells of one pass of one row: time and extra memory, share of a copy, time over bilinear.

    Args:
        record: What was measured, or why nothing was.
        ours: The same of ours.
    """
    if 'not_timed' in record:
        return [f'not timed: {record["not_timed"]}', '-', '-']
    extra = record['extra_bytes']
    base = max(ours['extra_bytes'], 1) if 'extra_bytes' in ours else None
    times = f'{milliseconds(record["ms"])} ({number(record["time_over_sapa_mm"], ".2f")}x)'
    memory = f'{extra / 2**20:.1f} MiB ({number(base and extra / base, ".1f")}x)'
    return [
        f'{times}, {memory}',
        f'{record["of_copy"]:.1%}',
        number(record['time_over_bilinear'], '.2f'),
    ]


def print_table(rows: Sequence[dict]) -> None:
    """Print the rows of a shape as a Markdown table, and what the first calls of ours cost."""
    head = ['dtype', 'layout', 'candidate']
    for label in PASSES:
        head += [label, 'of copy', 'x bilinear']
    lines, firsts = [], []
    for (dtype, layout), members in groups(rows).items():
        ours = next(row for row in members if row['candidate'] == OURS)
        for row in members:
            line = [dtype, layout, row['candidate']]
            for label in PASSES:
                same = label != PASSES[0] and row[label] == row[PASSES[0]]  # reason
                line += ['-'] * 3 if same else cells(row[label], ours[label])
            lines.append(line)
        calls = [f'{seconds:.2f} s {label}' for label, seconds in ours['first_call_s'].items()]
        firsts.append(f'{dtype} {layout} {", ".join(calls) or "none"}')
    print(markdown_table(head, lines))
    print(f'\nFirst calls of {OURS} (compilation, tuning): {"; ".join(firsts)}.\n')


def print_totals(shapes: Sequence[Shape], rows: Sequence[dict]) -> None:
    """Print the time of all steps of a network together: each shape's, times its steps.

    Args:
        shapes: All that were measured; those without steps are left out.
        rows: Of all shapes.
    """
    steps = {shape.name: len(shape.steps) for shape in shapes if shape.steps}
    if not steps:
        return
    print(f'All {sum(steps.values())} steps of SegFormer together:\n')
    lines = []
    for (dtype, layout), members in groups([r for r in rows if r['shape'] in steps]).items():
        for name in dict.fromkeys(row['candidate'] for row in members):
            line = [dtype, layout, name]
            for label in PASSES:
                times = [
                    row[label]['ms'] * steps[row['shape']]
                    for row in members
                    if row['candidate'] == name and 'ms' in row[label]
                ]
                line.append(milliseconds(sum(times)) if len(times) == len(steps) else '-')
            lines.append(line)
    print(markdown_table(['dtype', 'layout', 'candidate', *PASSES], lines), end='\n\n')


def write_plot(path: Path, info: dict, rows: Sequence[dict]) -> None:
    """Draw times relative to bilinear interpolation: a row of panels a dtype and layout.

    Args:
        path: File to write; the suffix gives the format.
        info: The environment.
        rows: Of all shapes. What was never timed is left out.
    """
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(row['shape'] for row in rows))
    timed = [row for row in rows if any(row[label].get('time_over_bilinear') for label in PASSES)]
    names = [n for n in dict.fromkeys(row['candidate'] for row in timed) if n != BILINEAR]
    panels = groups(rows)
    width = min(24, 2 * max(3.5, 0.22 * len(shapes) * (len(names) + 1)))
    figure = Figure(figsize=(width, 1.6 + 2.6 * len(panels)), layout='constrained')
    axes = figure.subplots(len(panels), len(PASSES), sharex=True, sharey=True, squeeze=False)
    step = 0.84 / max(len(names), 1)
    for line, ((dtype, layout), members) in zip(axes, panels.items(), strict=True):
        line[0].set_ylabel(f'{dtype}, {layout}\ntime / time of bilinear')
        for ax, label in zip(line, PASSES, strict=True):
            for i, name in enumerate(names):
                mine = {row['shape']: row[label] for row in members if row['candidate'] == name}
                ratios = [mine[shape].get('time_over_bilinear') for shape in shapes]
                x = [j + (i - (len(names) - 1) / 2) * step for j in range(len(shapes))]
                bars = ax.bar(
                    x, [(r or 1) - 1 for r in ratios], step, bottom=1, label=name, color=f'C{i}'
                )
                texts = [f'{r:.3g}' if r else 'not timed' for r in ratios]
                ax.bar_label(bars, texts, fontsize=7, rotation=90, padding=2)
            ax.axhline(1, color='0.4', linewidth=1)
            ax.grid(axis='y', color='0.9')
            ax.set_axisbelow(True)
            ax.set_yscale('log')
            ax.set_xticks(range(len(shapes)), shapes, fontsize=8)
            if len(shapes) > 2:
                ax.tick_params('x', rotation=20)
    low, high = axes[0, 0].get_ylim()
    room = (high / low) ** 0.25  # for the numbers
    axes[0, 0].set_ylim(low / (room if low < 0.95 else 1), high * room)
    for ax, label in zip(axes[0], PASSES, strict=True):
        ax.set_title(label)
    figure.suptitle(f'{info["device"]}, torch {info["torch"]}, {info["date"]}', fontsize=10)
    if names:
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc='outside lower center', ncols=4, fontsize=9, frameon=False
        )
    write_atomically(path, lambda part: figure.savefig(part, dpi=150))
