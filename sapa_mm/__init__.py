"""Similarity-aware feature upsampling for OpenMMLab.

Importing the package registers everything whose framework is installed: the upsamplers with
mmengine, the hosts with mmsegmentation and mmdetection. With torch alone there are `sapa_mm.ops`
and `sapa_mm.upsamplers`.
"""

import contextlib
import importlib

from . import ops
from .frameworks import MissingFrameworkError
from .version import __version__

__all__ = ['MissingFrameworkError', '__version__', 'ops']

_PARTS = (
    'upsamplers',
    'hooks',
    'visualization',
    'reconstruction',
    'matting',
    'segmentation',
    'depth',
    'detection',
)


def __getattr__(name: str) -> object:
    """Import a part when it is asked for; without its framework that says what to install."""
    if name in _PARTS:
        return importlib.import_module(f'.{name}', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _register() -> None:
    """Import whatever the installed frameworks allow."""
    with contextlib.suppress(MissingFrameworkError):
        importlib.import_module('.upsamplers', __name__)
        # This and all that follows needs mmengine.
        compat = importlib.import_module('.compat', __name__)
        compat.allow_mmengine_checkpoints()
        compat.refuse_other_checkpoints()
        compat.add_config_scope()
        for name in _PARTS[1:]:
            with contextlib.suppress(MissingFrameworkError):
                importlib.import_module(f'.{name}', __name__)


_register()
