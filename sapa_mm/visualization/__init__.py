"""Pictures of predictions."""

from ..frameworks import require

with require('matplotlib', __name__, 'matplotlib'):
    import matplotlib  # noqa: F401

from .comparison import draw_pictures, draw_segmentations
from .superpixels import draw_superpixels, mark_superpixels

__all__ = ['draw_pictures', 'draw_segmentations', 'draw_superpixels', 'mark_superpixels']
