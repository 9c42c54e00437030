"""The tool `complexity` counts parameters and FLOPs."""

from .command import main

__all__ = ['main']
