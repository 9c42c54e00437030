"""Compares upsamplers in one model."""

from .command import main

__all__ = ['main']
