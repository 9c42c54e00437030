"""Writes models to ONNX and to programs of torch.export."""

from .command import main

__all__ = ['main']
