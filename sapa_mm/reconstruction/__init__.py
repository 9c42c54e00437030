"""Image reconstruction, a test of upsampling that trains in minutes, on mmengine alone."""

from ..frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401

from .autoencoder import Autoencoder
from .idx_images import IdxImages
from .metric import ReconstructionMetric

__all__ = ['Autoencoder', 'IdxImages', 'ReconstructionMetric']
