"""This decides which backend runs an operator, and how operators behave under autocast.

By default a GPU's tensors go to the Triton kernels, where these can take them, and all others to
the PyTorch code. `unavailable` has the rules and says which of them stands in the way.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
def _gpu_unusable(device: torch.device) -> str | None:
    """Say why the kernels cannot run on a GPU, or None if they can."""
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < CUDA_MIN_CAPABILITY:
        wanted, found = ('.'.join(map(str, x)) for x in (CUDA_MIN_CAPABILITY, capability))
        return f'it needs compute capability {wanted} or newer, the GPU has {found}'
    return None


def _device_unusable(device: torch.device) -> str | None:
    """Say why the kernels cannot run on tensors of a device, or None if they can."""
    if device.type == 'cuda':
        return _gpu_unusable(device)
    from ..kernels.launch import is_stubbed
    from ..kernels.window import INTERPRETED

    if device.type == 'cpu' and (INTERPRETED.value or is_stubbed()):
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
    if not tensors:
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        return _triton_unusable() or _device_unusable(device)
    high, low = tensors[0], tensors[-1]
    return _call_unusable(high.device, low.dtype, high.shape[2:], low.shape[2:], kernel_size)


def _call_unusable(
    device: torch.device,
    dtype: torch.dtype,
    high: tuple[int, ...],
    low: tuple[int, ...],
    kernel_size: int,
) -> str | None:
    """Say why the kernels cannot take a call of these sizes, or None if they can."""
    reason = _triton_unusable() or _device_unusable(device)
    return reason or _sizes_unusable(dtype, high, low, kernel_size)


@functools.lru_cache(maxsize=4096)
def _sizes_unusable(
    dtype: torch.dtype, high: tuple[int, ...], low: tuple[int, ...], kernel_size: int
) -> str | None:
    """Say why the kernels cannot take maps of these sizes, or None if they can."""
    if dtype not in TRITON_DTYPES:
        return f'it takes float16, bfloat16 and float32, not {str(dtype).removeprefix("torch.")}'
    if kernel_size > TRITON_MAX_KERNEL_SIZE:
        return f'it takes a kernel_size of at most {TRITON_MAX_KERNEL_SIZE}, not {kernel_size}'
    sides = list(zip(high, low, strict=True))
    sizes = ' to '.join(f'{tuple(size)}' for size in (low, high))
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
        reason = _call_unusable(low.device, low.dtype, high.shape[2:], low.shape[2:], kernel_size)
        if reason is None:
            name = 'triton'
        elif requested == 'triton':
            raise RuntimeError(f'the triton backend cannot run: {reason}')
    return _import(modules[name])


class Operator:
    """An operator ``sapa_mm::name``, which is called without PyTorch's dispatcher where it can be.

    The dispatcher and what `torch.library.custom_op` puts around it take a multiple of the time
    that a small call takes. They are there for those who watch or change what is called: compilers
    and exporters, modes, transforms, profilers, and tensors of other classes. All others get the
    implementation itself, with a gradient of its own.

    Args:
        name: The operator's.
        schema: Its arguments and results. torch 2.4 cannot infer one with a string as a default,
            and without the default of ``backend`` exported programs that do not name it are void.
        function: The implementation.
    """

    def __init__(self, name: str, schema: str, function: Callable):
        self.function = function
        self.library_op = torch.library.custom_op(
            f'sapa_mm::{name}', function, mutates_args=(), schema=schema
        )
        self.register_fake = self.library_op.register_fake
        self._opoverload = self.library_op._opoverload
        self._autograd: type[torch.autograd.Function] | None = None

    def register_autograd(self, backward: Callable, *, setup_context: Callable) -> None:
        """Register a gradient as `torch.library.CustomOpDef.register_autograd` does."""
        function = self.function
        defaults = [argument.default_value for argument in self._opoverload._schema.arguments]

        def setup(ctx: Any, inputs: tuple, output: object) -> None:
            # Arguments at the end that are their defaults may be missing.
            setup_context(ctx, (*inputs, *defaults[len(inputs) :]), output)

        self.library_op.register_autograd(backward, setup_context=setup)

        class Differentiable(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: object) -> object:
                output = function(*inputs)
                setup(ctx, inputs, output)
                return output

            @staticmethod
            @once_differentiable
            def backward(ctx: Any, *grads: Tensor) -> object:
                return backward(ctx, *grads)

        Differentiable.__name__ = self.library_op._name
        self._autograd = Differentiable

    def __call__(self, *inputs: Any) -> Any:
        """Compute the operator; all of its arguments are given by place."""
        if _is_watched():
            return self.library_op(*inputs)
        differentiable = False
        for x in inputs:
            if type(x) in _PLAIN:
                differentiable = differentiable or x.requires_grad
            elif isinstance(x, Tensor):
                return self.library_op(*inputs)
        if inputs[0].is_meta:
            return self.library_op(*inputs)
        if differentiable and self._autograd is not None and torch.is_grad_enabled():
            return self._autograd.apply(*inputs)
        return self.function(*inputs)


def empty_gradients(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Return an empty tensor like each input, or one of shape (0,) where no gradient is wanted."""
    first = inputs[0]
    assert first is not None
    return tuple(
        torch.empty_like(x) if need and x is not None else first.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    )


def given_gradients(grads: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return the gradients that `empty_gradients` made room for, and None for the others."""
    return tuple(x if need else None for x, need in zip(grads, needs, strict=True))


_PLAIN = (Tensor, torch.nn.Parameter)


def _is_watched() -> bool:
    """Return whether somebody is there who has to know of a call."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd._profiler_enabled()
    )


def operator(name: str, schema: str) -> Callable[[Callable], Operator]:
    """Return the decorator that makes a function the `Operator` ``sapa_mm::name``."""
    return functools.partial(Operator, name, schema)


def without_autocast(function: Callable) -> Callable:
    """Run an implementation with autocast off: it picks its own accumulation dtype.

    Args:
        function: Its first argument is a tensor.
    """

    @functools.wraps(function)
    def wrapper(first: Tensor, *args: object) -> object:
        if not autocast_is_on(first):
            return function(first, *args)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args)

    return wrapper


def autocast_is_on(x: object) -> bool:
    """Return whether autocast is on for the device of ``x``."""
    compiling = torch.compiler.is_compiling()
    if not compiling and not torch._C._is_any_autocast_enabled():
        return False
    if not isinstance(x, Tensor) or x.is_meta:
        return False
    # The compiler of torch 2.11 cannot trace the question, and compiles for devices that have it.
    if not compiling and not torch.amp.is_autocast_available(x.device.type):
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
