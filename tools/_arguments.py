"""Types of command line arguments that several tools take."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it takes a second: not for tools that take no device
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
