"""Makes the toy data."""

from .command import main

__all__ = ['main']
