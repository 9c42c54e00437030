"""The tool `benchmark` times the operators and whole models."""

from .command import main

__all__ = ['main']
