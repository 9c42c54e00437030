"""Files that tools write."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` and put it in its place when it is whole."""
    part = path.with_name(f'.{path.name}.{os.getpid()}{path.suffix}')
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_atomically(path, lambda part: part.write_text(text, encoding='utf-8'))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    write_atomically(path, lambda part: part.write_bytes(data))


def write_json(path: Path, record: object) -> None:
    """Write a record as JSON, whole or not at all."""
    write_text(path, json.dumps(record, indent=2) + '\n')


def markdown_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    texts: int | None = None,
    pad: bool = False,
) -> str:
    """A table in Markdown.

    Args:
        head: Titles of the columns.
        rows: Their cells.
        texts: How many columns hold text; the others are aligned to the right. Default: all.
        pad: Whether the columns line up in the source too.
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) if pad else 3 for column in zip(*lines, strict=True)]
    texts = len(widths) if texts is None else texts
    rule = ['-' * w if i < texts else '-' * max(w - 1, 3) + ':' for i, w in enumerate(widths)]
    if pad:
        lines = [
            [cell.ljust(w) if i < texts else cell.rjust(w) for i, (cell, w) in enumerate(pairs)]
            for pairs in (zip(line, widths, strict=True) for line in lines)
        ]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (lines[0], rule, *lines[1:]))
