"""Pictures of predictions, superpixels and upsampling."""

from ..frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401
with require('matplotlib', __name__, 'matplotlib'):
    import matplotlib  # noqa: F401

from ..upsamplers import find_upsamplers
from .comparison import draw_pictures, draw_segmentations
from .depth import (
    compare_edges,
    depth_range,
    depth_to_rgb,
    depths_to_rgb,
    draw_depths,
    relative_error,
)
from .matting import draw_mattes
from .prediction import find_max_depth, outline_prediction, prediction_title
from .recording import (
    Recording,
    UpsamplingStep,
    record_upsampling,
    select_upsamplers,
)
from .superpixels import (
    draw_superpixel_curves,
    draw_superpixels,
    find_leakage,
    mark_superpixels,
)
from .upsampling import (
    draw_upsampling,
    draw_upsampling_steps,
    feature_to_rgb,
    figure_to_rgb,
    input_image,
)
from .upsampling_hook import UpsamplingVisualizationHook

__all__ = [
    'Recording',
    'UpsamplingStep',
    'UpsamplingVisualizationHook',
    'compare_edges',
    'depth_range',
    'depth_to_rgb',
    'depths_to_rgb',
    'draw_depths',
    'draw_mattes',
    'draw_pictures',
    'draw_segmentations',
    'draw_superpixel_curves',
    'draw_superpixels',
    'draw_upsampling',
    'draw_upsampling_steps',
    'feature_to_rgb',
    'figure_to_rgb',
    'find_leakage',
    'find_max_depth',
    'find_upsamplers',
    'input_image',
    'mark_superpixels',
    'outline_prediction',
    'prediction_title',
    'record_upsampling',
    'relative_error',
    'select_upsamplers',
]
