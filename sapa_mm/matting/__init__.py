"""Image matting: the opacity of a foreground, from an image and its trimap, on mmengine alone."""

from ..frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401
with require('OpenCV', __name__, 'opencv-python-headless'):
    import cv2  # noqa: F401

from .backbone import MattingResNet
from .files import (
    UNKNOWN,
    check_same_size,
    check_unknown,
    normalize_trimap,
    read_alpha,
    read_image,
    read_trimap,
)
from .inference import predict_alpha, trimap_sample
from .loss import alpha_loss, composition_loss
from .network import GuidedMattingNet
from .preprocessor import MattingPreprocessor

__all__ = [
    'UNKNOWN',
    'GuidedMattingNet',
    'MattingPreprocessor',
    'MattingResNet',
    'alpha_loss',
    'check_same_size',
    'check_unknown',
    'composition_loss',
    'normalize_trimap',
    'predict_alpha',
    'read_alpha',
    'read_image',
    'read_trimap',
    'trimap_sample',
]
