"""Lets mmengine find this package's configs, and torch >= 2.6 read mmengine's checkpoints.

Since 2.6 `torch.load` reads with ``weights_only=True`` and refuses every class that is not on its
list. mmengine's checkpoints hold the training log, made of `HistoryBuffer` and numpy arrays, so
testing, resuming and ``load_from`` would fail. Only those names are added to the list: a checkpoint
that names anything else is still refused before anything in it runs.
"""

import functools
import pickle
from collections.abc import Callable

from .frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401

import numpy as np
import torch

# What HistoryBuffer registers as its statistics, hence all that its pickles name by getattr.
_STATISTICS = ('min', 'max', 'mean', 'current')

# The log holds float64 and int64, a best score float32, and a dataset's palette may be uint8.
_DTYPE_NAMES = (
    'bool',
    'int8',
    'int16',
    'int32',
    'int64',
    'uint8',
    'uint16',
    'uint32',
    'uint64',
    'float16',
    'float32',
    'float64',
)


def history_buffer_statistic(owner: type, name: str) -> Callable:
    """Stand in for ``getattr`` while a checkpoint is read.

    Args:
        owner: The object whose attribute is wanted; only mmengine's `HistoryBuffer` is accepted.
        name: The attribute: 'min', 'max', 'mean' or 'current'.

    Returns:
        The method of `HistoryBuffer` with that name.

    Raises:
        pickle.UnpicklingError: For any other owner or name.
    """
    from mmengine.logging import HistoryBuffer

    # Exact types: a str subclass or a look-alike class must not reach the real getattr.
    if owner is not HistoryBuffer or type(name) is not str or name not in _STATISTICS:
        raise pickle.UnpicklingError(
            f'a checkpoint may take only {", ".join(_STATISTICS)} of HistoryBuffer by getattr, '
            f'got {name!r} of {owner!r}'
        )
    return getattr(HistoryBuffer, name)


def _checkpoint_globals() -> list:
    """Return the (object, pickled name) pairs that mmengine's checkpoints need."""
    from mmengine.logging import HistoryBuffer

    # numpy's own pickling functions, wherever this version of numpy keeps them.
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    found = [
        HistoryBuffer,
        (history_buffer_statistic, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(name)) for name in _DTYPE_NAMES),
    ]
    # numpy 2 moved the module; a checkpoint may come from either side of the move.
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        found.append((reconstruct, f'{module}._reconstruct'))
        found.append((scalar, f'{module}.scalar'))
    return found


def allow_mmengine_checkpoints() -> None:
    """Register mmengine's checkpoint contents with torch as safe to read.

    Needs mmengine. Runs at ``import sapa_mm`` where mmengine is installed, may be called again,
    prints nothing, and does nothing for torch before 2.6. ``weights_only`` stays on.
    """
    if torch.__version__ >= '2.6':  # compared as versions
        torch.serialization.add_safe_globals(_checkpoint_globals())


def add_config_scope() -> None:
    """Let ``_base_ = 'sapa_mm::...'`` and mmengine's ``get_config`` find this package's configs.

    mmengine keeps a table of the packages that it looks for, by the name before the ``::``, and
    builds what such a base names in the registries of that name. This package has none of its own:
    what its configs name is built in those of the config's ``default_scope``. Needs mmengine.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    if 'sapa_mm' in MODULE2PACKAGE:
        return
    # A module of the package in place of the distribution's name: mmengine then asks where the
    # module lies, which is right for an editable install too, while a distribution's location is
    # that of its metadata.
    MODULE2PACKAGE['sapa_mm'] = f'{__package__}.version'
    find = Config._get_cfg_path

    @functools.wraps(find)
    def find_without_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = find(cfg_path, filename)
        return path, None if scope == 'sapa_mm' else scope

    Config._get_cfg_path = staticmethod(find_without_scope)
