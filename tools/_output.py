"""Files that tools write."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def output_file(text: str) -> Path:
    """Parse the path of a file that can be made."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f'expected a file in an existing folder, got {text}')
    return path


def picture(text: str) -> Path:
    """Parse the file of a picture, whose suffix gives a format that matplotlib writes."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise argparse.ArgumentTypeError(
            f'needs matplotlib ({error}): pip install matplotlib'
        ) from error
    path = output_file(text)
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix('.') not in known:
        raise argparse.ArgumentTypeError(
            f'expected a file that ends in one of {", ".join(sorted(known))}, got {path}'
        )
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` and put it in its place when it is whole."""
    part = path.with_name(f'.{path.name}.{os.getpid()}{path.suffix}')
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
