"""Lets mmengine find configs, and read its checkpoints but no others with torch >= 2.6.

Since 2.6 `torch.load` reads with ``weights_only=True`` and refuses every class that is not on its
list. mmengine's checkpoints hold the training log, made of `HistoryBuffer` and numpy arrays, so
testing, resuming and ``load_from`` would fail. Only those names are added to the list: a checkpoint
that names anything else is still refused before anything in it runs. mmengine itself does not hold
to that everywhere: what it downloads it reads without ``weights_only``, and the fork's allows
``getattr`` of everything and reads again without ``weights_only`` what was refused. So torch is
told to insist while mmengine loads, and the fork's own list is emptied.
"""

import contextlib
import functools
import os
import pickle
import threading
from collections.abc import Callable, Iterator

from .frameworks import INSTALL, require

with require('mmengine', __name__, INSTALL['mmengine']):
    import mmengine  # noqa: F401

import numpy as np
import torch

from .frameworks import is_distribution

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
        slice,
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


_FORCE, _FORCE_NOT = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# The variable is the whole process's.
_loading = threading.RLock()


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Make ``torch.load`` read with ``weights_only=True``, whatever its callers ask for.

    The environment variable by which torch lets a user do so is set and reset; other threads wait.
    Where the user has set the opposite one, that holds.
    """
    if os.environ.get(_FORCE_NOT, '0').lower() in ('1', 'y', 'yes', 'true'):
        yield
        return
    with _loading:
        before = os.environ.get(_FORCE)
        os.environ[_FORCE] = '1'
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FORCE]
            else:
                os.environ[_FORCE] = before


def refuse_other_checkpoints() -> None:
    """Let nothing but weights and logs out of the checkpoints that mmengine loads.

    Without this a checkpoint can run code: mmengine reads what it downloads without
    ``weights_only``, the fork's mmengine repeats without it whatever ``weights_only`` refused, and
    both run the text under ``meta['config']`` as Python when a training is resumed, which old
    checkpoints have; it is left out. Needs mmengine; may be called again. For torch before 2.6 it
    does nothing: its ``weights_only`` can be got round (CVE-2025-32434), so that there no
    checkpoint of a stranger is safe.

    Afterwards `pickle.UnpicklingError` says what was refused, and how to load it all the same.
    """
    from mmengine.runner import checkpoint
    from mmengine.runner.checkpoint import CheckpointLoader

    load = CheckpointLoader.load_checkpoint.__func__
    if torch.__version__ < '2.6' or getattr(load, 'refuses_code', False):
        return

    @functools.wraps(load)
    def load_weights_only(cls: type, filename: str, *args: object, **kwargs: object) -> object:
        try:
            with weights_only():
                loaded = load(cls, filename, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(
                f'{filename} is no file of weights, or holds more than weights and training logs, '
                f'which could run code; if you trust it, set {_FORCE_NOT}=1\n{error}'
            ) from error
        if isinstance(loaded, dict) and isinstance(loaded.get('meta'), dict):
            loaded['meta'].pop('config', None)
        return loaded

    load_weights_only.refuses_code = True  # type: ignore[attr-defined]
    CheckpointLoader.load_checkpoint = classmethod(load_weights_only)
    if hasattr(checkpoint, 'get_torch_safe_globals'):
        # It allows them for the time of a load, and takes them off torch's list at its end, where
        # the same are on it already.
        checkpoint.get_torch_safe_globals = list


def add_config_scope() -> None:
    """Let ``_base_ = 'sapa_mm::...'`` and mmengine's ``get_config`` find packages' configs.

    mmengine keeps a table of the packages that it looks for, by the name before the ``::``, and
    builds what such a base names in the registries of that name. This package has none of its own:
    what its configs name is built in those of the config's ``default_scope``. In the table of the
    fork's mmengine ``mmseg`` is still called as upstream's distribution is. Needs mmengine.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    if 'sapa_mm' in MODULE2PACKAGE:
        return
    if is_distribution('onedl-mmsegmentation'):
        MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'
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
