"""Pictures of predictions."""

from ..frameworks import require

with require('matplotlib', __name__, 'matplotlib'):
    import matplotlib  # noqa: F401

from .comparison import draw_segmentations

__all__ = ['draw_segmentations']
