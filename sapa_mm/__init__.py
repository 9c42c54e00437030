"""Similarity-aware feature upsampling for OpenMMLab.

Importing the package registers everything whose framework is installed: the upsamplers with
mmengine, the hosts with mmsegmentation and mmdetection. With torch alone there is `sapa_mm.ops`.
"""

import contextlib

from . import ops
from .frameworks import MissingFrameworkError
from .version import __version__

__all__ = ['__version__', 'ops']

with contextlib.suppress(MissingFrameworkError):
    from . import upsamplers
    from .compat import apply

    apply()
    __all__ += ['upsamplers']

# A host whose framework is missing says so when it is asked for.
with contextlib.suppress(MissingFrameworkError):
    from . import segmentation

    __all__ += ['segmentation']

with contextlib.suppress(MissingFrameworkError):
    from . import detection

    __all__ += ['detection']
