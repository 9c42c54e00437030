"""Types of command line arguments that several tools take."""

import argparse


def positive(text: str) -> int:
    """Parse a positive int."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f'expected a positive int, got {text}')
    return value
