"""What the benchmark prints and draws."""

import contextlib
import datetime
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...version import __version__
from ..output import markdown_table, write_atomically
from .candidates import BILINEAR, OURS
from .rows import PASSES, NotTimed, Row, Timing
from .shapes import Shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the table has of every pass beside its time and extra memory, and on a GPU besides.
COLUMNS = ('of copy', 'x bilinear', 'peak x bilinear')
HOST_COLUMN = 'host us'


def environment(device: torch.device) -> dict[str, str]:
    """Return date, device, versions, and the settings that change what is measured."""
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
    found['sapa_mm'] = __version__
    if device.type == 'cuda':
        found['cuda'] = torch.version.cuda or f'HIP {torch.version.hip}'
    found['float32_matmul_precision'] = torch.get_float32_matmul_precision()
    found['autotune'] = os.environ.get('SAPA_MM_AUTOTUNE', '1')
    return found


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Group rows by dtype and layout, in order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.dtype, row.layout), []).append(row)
    return found


def number(value: float | None, form: str) -> str:
    """Format a number that may be missing."""
    return '-' if value is None else format(value, form)


def milliseconds(value: float) -> str:
    """Format milliseconds with three digits or more."""
    return f'{value:.1f} ms' if value >= 10 else f'{value:.3f} ms'


def cells(found: Timing | NotTimed, ours: Timing | NotTimed | None, on_gpu: bool) -> list[str]:
    """Return the cells of one pass, those of `COLUMNS`; the first has time and extra memory.

    Args:
        found: The result of a candidate.
        ours: That of ours; None where ours is not among the candidates.
        on_gpu: Whether a GPU was timed, and the host has a time of its own.
    """
    if isinstance(found, NotTimed):
        return [f'not timed: {found.reason}', *['-'] * (len(COLUMNS) + on_gpu)]
    extra = found.extra_bytes
    growth = extra / max(ours.extra_bytes, 1) if isinstance(ours, Timing) else None
    times = f'{milliseconds(found.ms)} ({number(found.time_over_sapa_mm, ".2f")}x)'
    memory = f'{extra / 2**20:.1f} MiB ({number(growth, ".1f")}x)'
    return [
        f'{times}, {memory}',
        f'{found.of_copy:.1%}',
        number(found.time_over_bilinear, '.2f'),
        number(found.peak_over_bilinear, '.2f'),
        *([f'{1e3 * found.launch_ms:.0f}'] if on_gpu else []),
    ]


def print_table(rows: Sequence[Row], on_gpu: bool) -> None:
    """Print the rows of a shape as a Markdown table, and what the first calls of ours cost.

    Args:
        rows: The rows.
        on_gpu: Whether a GPU was timed; then the host's microseconds have a column.
    """
    columns = [*COLUMNS, *([HOST_COLUMN] if on_gpu else [])]
    head = ['dtype', 'layout', 'candidate']
    for label in PASSES:
        head += [label, *columns]
    lines, firsts = [], []
    for (dtype, layout), members in groups(rows).items():
        ours = next((row for row in members if row.candidate == OURS), None)
        for row in members:
            line = [dtype, layout, row.candidate]
            for label in PASSES:
                # A reason that both passes share is told once.
                same = label != PASSES[0] and row.passes[label] == row.passes[PASSES[0]]
                base = ours.passes[label] if ours else None
                found = cells(row.passes[label], base, on_gpu)
                line += ['-'] * len(found) if same else found
            lines.append(line)
        if ours:
            calls = [f'{seconds:.2f} s {label}' for label, seconds in ours.first_call_s.items()]
            firsts.append(f'{dtype} {layout} {", ".join(calls) or "none"}')
    print(markdown_table(head, lines), end='\n\n')
    if firsts:
        print(f'First calls of {OURS} (compilation, tuning): {"; ".join(firsts)}.\n')


def total(rows: Sequence[Row], label: str, steps: Mapping[str, int]) -> str:
    """Format the time of all steps of a network with one candidate; ``'-'`` if one was not timed.

    Args:
        rows: The candidate's rows of the shapes of the network.
        label: The pass.
        steps: How many steps every shape has.
    """
    found = [(row.passes[label], steps[row.shape]) for row in rows]
    times = [timing.ms * count for timing, count in found if isinstance(timing, Timing)]
    return milliseconds(sum(times)) if len(times) == len(steps) else '-'


def print_totals(shapes: Sequence[Shape], rows: Sequence[Row]) -> None:
    """Print the time of all steps of a network together: each shape's, times its steps.

    Args:
        shapes: All that were measured; those without steps are left out.
        rows: The rows of all shapes.
    """
    steps = {shape.name: len(shape.steps) for shape in shapes if shape.steps}
    if not steps:
        return
    print(f'All {sum(steps.values())} steps of SegFormer together:\n')
    lines = []
    for (dtype, layout), members in groups([r for r in rows if r.shape in steps]).items():
        for name in dict.fromkeys(row.candidate for row in members):
            mine = [row for row in members if row.candidate == name]
            lines.append([dtype, layout, name, *(total(mine, label, steps) for label in PASSES)])
    print(markdown_table(['dtype', 'layout', 'candidate', *PASSES], lines), end='\n\n')


def over_bilinear(row: Row, label: str) -> float | None:
    """Return the time of a pass over that of bilinear interpolation; None without one."""
    found = row.passes[label]
    return found.time_over_bilinear if isinstance(found, Timing) else None


def draw_panel(
    ax: 'Axes', rows: Sequence[Row], label: str, names: Sequence[str], shapes: Sequence[str]
) -> None:
    """Draw the bars of one dtype, layout and pass: a group for every shape.

    Args:
        ax: Where to draw.
        rows: The rows of the dtype and layout.
        label: The pass.
        names: The candidates, in the order of the bars.
        shapes: Names of the shapes.
    """
    step = 0.84 / max(len(names), 1)
    for i, name in enumerate(names):
        mine = {row.shape: over_bilinear(row, label) for row in rows if row.candidate == name}
        ratios = [mine[shape] for shape in shapes]
        x = [j + (i - (len(names) - 1) / 2) * step for j in range(len(shapes))]
        heights = [(r or 1) - 1 for r in ratios]
        bars = ax.bar(x, heights, step, bottom=1, label=name, color=f'C{i}')
        texts = [f'{r:.3g}' if r else 'not timed' for r in ratios]
        ax.bar_label(bars, texts, fontsize=7, rotation=90, padding=2)
    ax.axhline(1, color='0.4', linewidth=1)
    ax.grid(axis='y', color='0.9')
    ax.set_axisbelow(True)
    ax.set_yscale('log')
    ax.set_xticks(range(len(shapes)), shapes, fontsize=8)
    if len(shapes) > 2:
        ax.tick_params('x', rotation=20)


def write_plot(path: Path, info: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Draw times relative to bilinear interpolation: a row of panels for every dtype and layout.

    Args:
        path: File to write; the suffix gives the format.
        info: The environment.
        rows: The rows of all shapes. What was never timed is left out.
    """
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(row.shape for row in rows))
    timed = [row for row in rows if any(over_bilinear(row, label) for label in PASSES)]
    names = [n for n in dict.fromkeys(row.candidate for row in timed) if n != BILINEAR]
    panels = groups(rows)
    width = min(24, 2 * max(3.5, 0.22 * len(shapes) * (len(names) + 1)))
    figure = Figure(figsize=(width, 1.6 + 2.6 * len(panels)), layout='constrained')
    axes = figure.subplots(len(panels), len(PASSES), sharex=True, sharey=True, squeeze=False)
    for line, ((dtype, layout), members) in zip(axes, panels.items(), strict=True):
        line[0].set_ylabel(f'{dtype}, {layout}\ntime / time of bilinear')
        for ax, label in zip(line, PASSES, strict=True):
            draw_panel(ax, members, label, names, shapes)
    low, high = axes[0, 0].get_ylim()
    room = (high / low) ** 0.25  # the numbers need it
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
