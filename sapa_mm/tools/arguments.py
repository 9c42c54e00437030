"""Types of command line arguments that several tools take."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def positive(text: str) -> int:
    """Parse a positive int."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f'expected a positive int, got {text}')
    return value


def usable_device(text: str) -> 'torch.device':
    """Parse a CPU or CUDA device that is there."""
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device('meta')
    if device.type not in ('cpu', 'cuda'):
        raise argparse.ArgumentTypeError(f'expected cpu, cuda or cuda:N, got {text}')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(
            f'expected a device that is there, got {text} of {torch.cuda.device_count()} GPUs'
        )
    return device


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
