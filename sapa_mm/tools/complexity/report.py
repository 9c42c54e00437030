"""What `complexity.py` prints."""

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..output import markdown_table

if TYPE_CHECKING:  # these need mmengine
    from .count import Complexity, Size, Step
    from .tables import Cell, Table


def size_text(size: Sequence[int]) -> str:
    """Format a size: ``16 x 32``."""
    return ' x '.join(map(str, size))


def giga(flops: int) -> str:
    """Format FLOPs as GFLOPs, with four digits or more."""
    return f'{flops / 1e9:.2f}' if flops >= 10**10 else f'{flops / 1e9:#.4g}'


def step_cells(step: 'Step') -> list[str]:
    """Return the cells of an upsampling step; a star marks what mmengine counted."""

    def listed(sizes: 'Iterable[Size]') -> str:
        return ', '.join(dict.fromkeys(map(size_text, sizes))) or 'not called'

    return [
        ' '.join(filter(None, (step.host, step.name))),
        step.kind,
        listed(low for low, _ in step.sizes),
        listed(high for _, high in step.sizes),
        f'{step.params:,}',
        giga(step.flops) + ('' if step.exact else ' *'),
    ]


def model_section(name: str, found: 'Complexity') -> str:
    """Return the Markdown of what was counted of a model.

    Args:
        name: The section's title.
        found: What was counted.
    """
    about = f'{found.model}, image {size_text(found.shape)}'
    if found.proposals is not None:
        about += f', {found.proposals} proposals'
    rows = [('model', f'{found.params:,}', giga(found.flops))]
    if found.steps:
        params = sum(step.params for step in found.steps)
        flops = sum(step.flops for step in found.steps)
        rows.append(('in it: upsampling', f'{params:,}', giga(flops)))
    head = ['', 'parameters', 'GFLOPs']
    parts = [f'## {name}', about, markdown_table(head, rows, texts=1, pad=True)]
    if found.steps:
        head = ['step', 'upsampler', 'from', 'to', 'parameters', 'GFLOPs']
        parts.append(markdown_table(head, map(step_cells, found.steps), texts=2, pad=True))
        if not all(step.exact for step in found.steps):
            parts.append('\\* Counted by mmengine: the upsampler has no method `flops`.')
    if found.uncounted:
        listed = ', '.join(f'{op} ({number})' for op, number in found.uncounted.items())
        parts.append(f'Not counted, with how often they ran: {listed}.')
    return '\n\n'.join(parts) + '\n'


def cell_texts(cell: 'Cell') -> tuple[str, str, str]:
    """Format the computed figure, the paper's and the difference."""
    whole = cell.unit == 1
    computed = f'{cell.computed:,}' if whole else f'{cell.computed / cell.unit:.4f}'
    if cell.paper is None:
        return computed, '-', '-'
    digits = 0 if whole and not cell.suffix else cell.decimals + 2
    return computed, cell.paper, f'{cell.difference:+,.{digits}f}{cell.suffix}'


def table_section(table: 'Table') -> str:
    """Return the Markdown of a table beside the paper's."""
    notes: dict[str, int] = {}
    rows = []
    for labels, cells in table.rows:
        row, marks = list(labels), []
        for cell in cells:
            row += cell_texts(cell)
            if cell.note:
                marks.append(f'({notes.setdefault(cell.note, len(notes) + 1)})')
            elif cell.agrees is False:
                marks.append('differs')
        rows.append([*row, ' '.join(marks)])
    kinds = [cell.kind for cell in table.rows[0][1]]
    columns = itertools.chain.from_iterable((kind, 'paper', 'difference') for kind in kinds)
    head = [*table.labels, *columns, 'note']
    verdicts = [cell.agrees for _, cells in table.rows for cell in cells if cell.paper]
    equal = f'{sum(map(bool, verdicts))} of {len(verdicts)} figures'
    parts = [
        f'## {table.title}',
        markdown_table(head, rows, texts=len(table.labels), pad=True),
        f"{equal} are the paper's, at its precision.",
        *(f'({number}) {note}' for note, number in notes.items()),
    ]
    return '\n\n'.join(parts) + '\n'
