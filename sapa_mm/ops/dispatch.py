"""Which backend runs an operator, and how operators behave under autocast."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .checks import check_choice

BACKENDS = ('torch', 'triton')


def unavailable(name: str) -> str | None:
    """Why a backend cannot run here, or None if it can.

    Args:
        name: ``'torch'`` or ``'triton'``.

    Raises:
        ValueError: Unknown name.
    """
    check_choice('name', name, BACKENDS)
    if name == 'triton':
        return 'this version of sapa_mm.kernels holds no Triton kernels yet'
    return None


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force the backend of the operators called inside the context.

    By default operators choose the fastest that can run; for now that is always ``'torch'``.

    Args:
        name: ``'torch'`` or ``'triton'``.

    Raises:
        ValueError: Unknown name.
        RuntimeError: The backend cannot run here; the message says why.
    """
    reason = unavailable(name)
    if reason:
        raise RuntimeError(f'the {name} backend cannot run: {reason}')
    yield


def without_autocast(function: Callable) -> Callable:
    """Run an implementation with autocast off: it picks its own accumulation dtype.

    Args:
        function: Its first argument is a tensor.
    """

    @functools.wraps(function)
    def wrapper(first: Tensor, *args: object) -> object:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args)

    return wrapper


def autocast_is_on(x: object) -> bool:
    """Whether autocast is on for the device of ``x``."""
    if not isinstance(x, Tensor) or not torch.amp.is_autocast_available(x.device.type):
        return False
    return torch.is_autocast_enabled(x.device.type)


def autocast(*tensors: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Cast inputs as torch's own operators do when autocast is on; otherwise leave them.

    Args:
        *tensors: Inputs; float64, non-floating and non-tensors are left alone.
        dtype: The dtype to cast to. Default: autocast's.

    Returns:
        The inputs, cast or not.
    """
    if not autocast_is_on(tensors[0]):
        return tensors
    dtype = dtype or torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(
        t.to(dtype)
        if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        else t
        for t in tensors
    )
