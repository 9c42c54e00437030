"""Image matting: the opacity of a foreground, from an image and its trimap; on mmengine alone."""

from ..frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401

from .backbone import MattingResNet
from .inference import predict_alpha, trimap_sample
from .loss import alpha_loss, composition_loss
from .network import GuidedMattingNet
from .preprocessor import MattingPreprocessor

__all__ = [
    'GuidedMattingNet',
    'MattingPreprocessor',
    'MattingResNet',
    'alpha_loss',
    'composition_loss',
    'predict_alpha',
    'trimap_sample',
]
