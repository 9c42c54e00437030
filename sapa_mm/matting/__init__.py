"""Image matting, on mmengine alone."""

from ..frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401

from .metric import MattingMetric, connectivity_error, gradient_error, mse, sad

__all__ = ['MattingMetric', 'connectivity_error', 'gradient_error', 'mse', 'sad']
