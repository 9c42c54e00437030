"""Image matting: the opacity of a foreground, from an image and its trimap, on mmengine alone."""

from ..frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401
with require('OpenCV', __name__, 'opencv-python-headless'):
    import cv2  # noqa: F401

from .backbone import MattingResNet
from .dataset import CompositionDataset
from .files import UNKNOWN, read_alpha, read_image, read_trimap
from .foreground_colors import compose, cover, estimate_foreground
from .foregrounds import AddForeground, JitterForeground, RandomAffineForeground, ResizeSquare
from .inference import (
    predict_alpha,
    predict_reduced,
    reduce_trimap,
    reduced_size,
    trimap_sample,
)
from .loss import alpha_loss, composition_loss
from .metric import MattingMetric, connectivity_error, gradient_error, mse, sad
from .network import GuidedMattingNet
from .preprocessor import MattingPreprocessor
from .transforms import Composite, CropUnknown, LoadComposition, MakeTrimap, PackMatting

__all__ = [
    'UNKNOWN',
    'AddForeground',
    'Composite',
    'CompositionDataset',
    'CropUnknown',
    'GuidedMattingNet',
    'JitterForeground',
    'LoadComposition',
    'MakeTrimap',
    'MattingMetric',
    'MattingPreprocessor',
    'MattingResNet',
    'PackMatting',
    'RandomAffineForeground',
    'ResizeSquare',
    'alpha_loss',
    'compose',
    'composition_loss',
    'connectivity_error',
    'cover',
    'estimate_foreground',
    'gradient_error',
    'mse',
    'predict_alpha',
    'predict_reduced',
    'read_alpha',
    'read_image',
    'read_trimap',
    'reduce_trimap',
    'reduced_size',
    'sad',
    'trimap_sample',
]
