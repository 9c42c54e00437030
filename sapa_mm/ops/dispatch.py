"""This decides which backend runs an operator, and how operators behave under autocast.

By default a GPU's tensors go to the Triton kernels, where these can take them, and all others to
the PyTorch code. `unavailable` has the rules and says which of them stands in the way.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .checks import check_choice, check_kernel_size

BACKENDS = ('torch', 'triton')

# The kernels are made for these. Beyond, a window or a cell would not fit into a program's tile.
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TRITON_MAX_KERNEL_SIZE = 9
TRITON_MAX_RATIO = 8
# This bounds the product of a low and a high side: positions are computed in 32 bits.
TRITON_MAX_PRODUCT = 2**31 - 1
# This NVIDIA architecture was the first with matrix units for every dtype above.
CUDA_MIN_CAPABILITY = (8, 0)

_forced: str | None = None


@functools.cache
def _triton_unusable() -> str | None:
    """Say why Triton cannot be used at all, or None if it can."""
    if importlib.util.find_spec('triton') is None:
        return 'Triton is not installed (pip install triton)'
    # In a checkout the kernels lie beside this package: only an installation puts them inside.
    if importlib.util.find_spec('..kernels', __package__) is None:
        return 'sapa_mm.kernels is not installed (pip install -e . in the checkout of sapa_mm)'
    import triton

    from ..kernels import OLDEST_TRITON

    if tuple(int(part) for part in triton.__version__.split('.')[:2]) < OLDEST_TRITON:
        oldest = '.'.join(map(str, OLDEST_TRITON))
        return f'triton >= {oldest} is needed, {triton.__version__} is installed'
    return None


@functools.cache
def _device_unusable(device: torch.device) -> str | None:
    """Say why the kernels cannot run on tensors of a device, or None if they can."""
    if device.type == 'cuda':
        capability = torch.cuda.get_device_capability(device)
        if torch.version.hip is None and capability < CUDA_MIN_CAPABILITY:
            wanted, found = ('.'.join(map(str, x)) for x in (CUDA_MIN_CAPABILITY, capability))
            return f'it needs compute capability {wanted} or newer, the GPU has {found}'
        return None
    from ..kernels.window import INTERPRETED

    if device.type == 'cpu' and INTERPRETED.value:
        return None
    return (
        f'it needs tensors on a GPU, not on {device}, or the interpreter, which TRITON_INTERPRET=1 '
        'in the environment turns on'
    )


def unavailable(name: str, *tensors: Tensor, kernel_size: int = 1) -> str | None:
    """Say why a backend cannot run here, or cannot take a call, or None if it can.

    Args:
        name: ``'torch'``, which takes everything, or ``'triton'``.
        *tensors: The tensors of a call to an operator in its order, of which the first and the last
            are looked at. Without any the answer is whether the backend can run at all.
        kernel_size: The window size of the call. Default: 1.

    Raises:
        TypeError: ``kernel_size`` is not an int.
        ValueError: Unknown name, or an even ``kernel_size``.
    """
    check_choice('name', name, BACKENDS)
    check_kernel_size(kernel_size)
    if name == 'torch':
        return None
    if tensors:
        device = tensors[0].device
    else:
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    reason = _triton_unusable() or _device_unusable(device)
    if reason or not tensors:
        return reason
    high, low = tensors[0], tensors[-1]
    if low.dtype not in TRITON_DTYPES:
        return (
            f'it takes float16, bfloat16 and float32, not {str(low.dtype).removeprefix("torch.")}'
        )
    if kernel_size > TRITON_MAX_KERNEL_SIZE:
        return f'it takes a kernel_size of at most {TRITON_MAX_KERNEL_SIZE}, not {kernel_size}'
    sides = list(zip(high.shape[2:], low.shape[2:], strict=True))
    sizes = ' to '.join(f'{tuple(x.shape[2:])}' for x in (low, high))
    if any(a > TRITON_MAX_RATIO * b for a, b in sides):
        return f'it takes ratios of at most {TRITON_MAX_RATIO}, not {sizes}'
    if any(a * (b + 1) > TRITON_MAX_PRODUCT for a, b in sides):
        return f'it takes sides whose product is at most {TRITON_MAX_PRODUCT}, not {sizes}'
    return None


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force the backend of the operators called inside the context, in all threads.

    The backward of such a call uses that backend too, wherever it runs. A call that the backend
    cannot take raises RuntimeError; `unavailable` tells beforehand.

    Args:
        name: ``'torch'`` or ``'triton'``.

    Raises:
        ValueError: Unknown name.
        RuntimeError: The backend cannot run here; the message says why.
    """
    global _forced
    reason = unavailable(name)
    if reason:
        raise RuntimeError(f'the {name} backend cannot run: {reason}')
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def requested_backend() -> str:
    """Return what `backend` forces now, or ``'auto'``: the last argument of every operator."""
    return _forced or 'auto'


@functools.cache
def _import(name: str) -> ModuleType:
    """Import a module, relative to this package."""
    return importlib.import_module(name, __package__)


def implementation(
    modules: dict[str, str], requested: str, high: Tensor, low: Tensor, kernel_size: int
) -> ModuleType:
    """Choose what runs a call of an operator, and import it.

    Args:
        modules: For each of `BACKENDS` the module with the operator's ``forward`` and
            ``backward``, relative to this package.
        requested: What `requested_backend` gave when the operator was called.
        high: The call's first tensor.
        low: The call's last tensor.
        kernel_size: The call's window size.

    Raises:
        RuntimeError: Triton was forced and cannot take the call; the message says why.
    """
    name = 'torch'
    if requested == 'triton' or (requested == 'auto' and low.is_cuda):
        reason = unavailable('triton', high, low, kernel_size=kernel_size)
        if reason is None:
            name = 'triton'
        elif requested == 'triton':
            raise RuntimeError(f'the triton backend cannot run: {reason}')
    return _import(modules[name])


def operator(name: str, schema: str) -> Callable[[Callable], torch.library.CustomOpDef]:
    """Return the decorator that makes a function the operator ``sapa_mm::name``.

    Args:
        name: The operator's.
        schema: Its arguments and results. torch 2.4 cannot infer one with a string as a default,
            and without the default of ``backend`` exported programs that do not name it are void.
    """
    return torch.library.custom_op(f'sapa_mm::{name}', mutates_args=(), schema=schema)


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
    """Return whether autocast is on for the device of ``x``."""
    if not isinstance(x, Tensor) or x.is_meta:
        return False
    # The compiler of torch 2.11 cannot trace the question, and compiles for devices that have it.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(x.device.type):
        return False
    return torch.is_autocast_enabled(x.device.type)


def autocast(*tensors: Any, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
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
