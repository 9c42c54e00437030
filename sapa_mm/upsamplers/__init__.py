"""Upsampling modules, ``forward(x, guide)``, in mmengine's root registry ``MODELS``."""

from ..frameworks import require

with require('mmengine', __name__, '"mmengine>=0.10"'):
    import mmengine  # noqa: F401

from .build import SingleInputUpsampler, build_steps, build_upsampler
from .sapa import SAPA

__all__ = ['SAPA', 'SingleInputUpsampler', 'build_steps', 'build_upsampler']
