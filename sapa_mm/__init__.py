"""Similarity-aware feature upsampling for OpenMMLab.

Importing the package registers everything whose framework is installed: the upsamplers with
mmengine, the hosts with mmsegmentation and mmdetection. With torch alone there is `sapa_mm.ops`.
"""

import contextlib
import importlib

from . import ops
from .frameworks import MissingFrameworkError
from .version import __version__

__all__ = ['MissingFrameworkError', '__version__', 'ops']


def __getattr__(name: str) -> object:
    """Import a part when it is asked for; without its framework that says what to install."""
    if name in ('upsamplers', 'visualization', 'reconstruction', 'segmentation', 'detection'):
        return importlib.import_module(f'.{name}', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


with contextlib.suppress(MissingFrameworkError):
    importlib.import_module('.upsamplers', __name__)
    _compat = importlib.import_module('.compat', __name__)
    _compat.allow_mmengine_checkpoints()
    _compat.refuse_other_checkpoints()
    _compat.add_config_scope()
    del _compat

for _name in ('visualization', 'reconstruction', 'segmentation', 'detection'):
    with contextlib.suppress(MissingFrameworkError):
        importlib.import_module(f'.{_name}', __name__)
del _name, contextlib
