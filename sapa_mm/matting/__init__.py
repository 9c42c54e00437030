"""Image matting with every upsampler, on mmengine alone."""

from ..frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401

from .dataset import CompositionDataset
from .files import (
    UNKNOWN,
    check_same_size,
    check_unknown,
    normalize_trimap,
    read_alpha,
    read_image,
    read_trimap,
)
from .foregrounds import (
    AddForeground,
    JitterForeground,
    RandomAffineForeground,
    ResizeSquare,
)
from .transforms import Composite, CropUnknown, LoadComposition, MakeTrimap, PackMatting

__all__ = [
    'UNKNOWN',
    'AddForeground',
    'Composite',
    'CompositionDataset',
    'CropUnknown',
    'JitterForeground',
    'LoadComposition',
    'MakeTrimap',
    'PackMatting',
    'RandomAffineForeground',
    'ResizeSquare',
    'check_same_size',
    'check_unknown',
    'normalize_trimap',
    'read_alpha',
    'read_image',
    'read_trimap',
]
