"""Each check of an argument raises an error that names it, what was expected and what came."""

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f'{name}: expected one of {", ".join(choices)}, got {value!r}')


def _is_number(value: object, kinds: type | tuple[type, ...]) -> TypeGuard[float]:
    """Return whether ``value`` is of ``kinds``; True and False, ints to Python, are not."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def check_int(name: str, value: object, low: int | None = None, high: int | None = None) -> None:
    """Raise TypeError unless ``value`` is an int, ValueError unless it is within the bounds.

    Args:
        name: The argument's name.
        value: The argument.
        low: The least value that is allowed. Default: there is none.
        high: The largest value that is allowed. Default: there is none.
    """
    if low is not None and high is not None:
        wanted = f'an int from {low} to {high}'
    elif low is not None:
        wanted = 'a positive int' if low == 1 else f'an int of at least {low}'
    elif high is not None:
        wanted = f'an int of at most {high}'
    else:
        wanted = 'an int'
    if not _is_number(value, int):
        raise TypeError(f'{name}: expected {wanted}, got {value!r}')
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f'{name}: expected {wanted}, got {value}')


def check_positive_int(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is an int, ValueError unless it is positive."""
    check_int(name, value, low=1)


def check_bool(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f'{name}: expected True or False, got {value!r}')


def check_kernel_size(kernel_size: object, name: str = 'kernel_size') -> None:
    """Raise TypeError unless it is an int, ValueError unless it is odd and positive."""
    if not _is_number(kernel_size, int):
        raise TypeError(f'{name}: expected an odd positive int, got {kernel_size!r}')
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'{name}: expected an odd positive int, got {kernel_size}')


def check_positive(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a number, ValueError unless it is finite and positive."""
    if not _is_number(value, (int, float)):
        raise TypeError(f'{name}: expected a positive number, got {value!r}')
    if not 0 < value < math.inf:
        raise ValueError(f'{name}: expected a positive number, got {value}')


def check_map(name: str, x: object, layout: str) -> None:
    """Raise TypeError or ValueError unless ``x`` is a non-empty floating point (N, C, H, W).

    Args:
        name: The argument's name.
        x: The argument.
        layout: How its documentation writes the shape, for the message.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f'{name}: expected a tensor {layout}, got {type(x).__name__}')
    if x.dim() != 4:
        raise ValueError(f'{name}: expected 4 dimensions {layout}, got shape {tuple(x.shape)}')
    if x.dtype not in DTYPES:
        raise TypeError(f'{name}: expected float16, bfloat16, float32 or float64, got {x.dtype}')
    if 0 in x.shape:
        raise ValueError(f'{name}: expected a non-empty tensor {layout}, got {tuple(x.shape)}')


def check_alike(
    name: str, x: Tensor, other_name: str, other: Tensor, *, same_dtype: bool = True
) -> None:
    """Raise ValueError unless two maps share device and batch, TypeError unless dtype."""
    if x.device != other.device:
        raise ValueError(
            f'{name}: expected device {other.device} like {other_name}, got {x.device}'
        )
    if same_dtype and x.dtype != other.dtype:
        raise TypeError(f'{name}: expected {other.dtype} like {other_name}, got {x.dtype}')
    if x.shape[0] != other.shape[0]:
        raise ValueError(
            f'{name}: expected batch size {other.shape[0]} like {other_name}, got {x.shape[0]}'
        )


def check_sizes(high_name: str, high: Tensor, low_name: str, low: Tensor) -> None:
    """Raise ValueError unless the first map is at least as large as the second."""
    if high.shape[2] < low.shape[2] or high.shape[3] < low.shape[3]:
        raise ValueError(
            f'{high_name}: expected a size of at least {tuple(low.shape[2:])}, the size of '
            f'{low_name}, got {tuple(high.shape[2:])}'
        )


def check_pair(query: Tensor, key: Tensor) -> None:
    """Check query (N, D, Hg, Wg) against key (N, D, H, W)."""
    check_map('query', query, '(N, D, Hg, Wg)')
    check_map('key', key, '(N, D, H, W)')
    check_alike('key', key, 'query', query)
    if query.shape[1] != key.shape[1]:
        raise ValueError(f'key: expected {query.shape[1]} channels like query, got {key.shape[1]}')
    check_sizes('query', query, 'key', key)


def check_value(value: Tensor, key: Tensor) -> None:
    """Check value (N, C, H, W) against key (N, D, H, W)."""
    check_map('value', value, '(N, C, H, W)')
    check_alike('value', value, 'key', key)
    if value.shape[2:] != key.shape[2:]:
        raise ValueError(
            f'value: expected size {tuple(key.shape[2:])} like key, got {tuple(value.shape[2:])}'
        )


def check_weights(weights: Tensor, value: Tensor, kernel_size: int, groups: object) -> None:
    """Check weights (N, G*K*K, Hg, Wg) and the number of groups G against value (N, C, H, W)."""
    check_map('weights', weights, '(N, G*K*K, Hg, Wg)')
    check_map('value', value, '(N, C, H, W)')
    check_alike('value', value, 'weights', weights)
    if not _is_number(groups, int):
        raise TypeError(f'groups: expected a positive int, got {groups!r}')
    if groups < 1 or value.shape[1] % groups:
        raise ValueError(
            f'groups: expected a divisor of the {value.shape[1]} channels of value, got {groups}'
        )
    if weights.shape[1] != groups * kernel_size**2:
        raise ValueError(
            f'weights: expected {groups * kernel_size**2} channels for kernel_size {kernel_size} '
            f'and groups {groups}, got {weights.shape[1]}'
        )
    check_sizes('weights', weights, 'value', value)


def _check_parameter(name: str, parameter: object, shape: tuple[int, ...], x: Tensor) -> None:
    """Check a parameter of an operator on ``x``, if there is one."""
    if parameter is None:
        return
    if not isinstance(parameter, Tensor):
        raise TypeError(
            f'{name}: expected None or a tensor of shape {shape}, got {type(parameter).__name__}'
        )
    if tuple(parameter.shape) != shape:
        raise ValueError(f'{name}: expected shape {shape}, got {tuple(parameter.shape)}')
    if parameter.device != x.device:
        raise ValueError(f'{name}: expected device {x.device} like x, got {parameter.device}')
    if parameter.dtype not in (x.dtype, torch.float32):
        wanted = ' or '.join(dict.fromkeys((f'{x.dtype} like x', 'torch.float32')))
        raise TypeError(f'{name}: expected {wanted}, got {parameter.dtype}')


def _check_low(name: str, low: Tensor, channels: int, x: Tensor) -> None:
    """Check a map at low resolution (N, ``channels``, h, w) against x (N, C, H, W)."""
    check_map(name, low, f'(N, {channels}, h, w)')
    check_alike(name, low, 'x', x)
    if low.shape[1] != channels:
        raise ValueError(f'{name}: expected {channels} channels, got {low.shape[1]}')
    check_sizes('x', x, name, low)


def check_embedding(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalize: object,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: object,
    gate: Tensor | None,
    addend: Tensor | None,
) -> None:
    """Check the arguments of `embed`, where a tensor may be None, except x."""
    check_map('x', x, '(N, C, H, W)')
    check_bool('normalize', normalize)
    check_positive('eps', eps)
    channels = x.shape[1]
    if weight is None:
        if not normalize:
            raise ValueError('weight: expected a tensor (D, C) with normalize=False, got None')
        if bias is not None:
            raise ValueError('bias: expected None without weight, as norm_bias does the same')
        embed_dims = channels
    else:
        if not isinstance(weight, Tensor):
            raise TypeError(f'weight: expected a tensor (D, C), got {type(weight).__name__}')
        if weight.dim() != 2 or 0 in weight.shape:
            raise ValueError(f'weight: expected (D, {channels}), got shape {tuple(weight.shape)}')
        embed_dims = weight.shape[0]
        _check_parameter('weight', weight, (embed_dims, channels), x)
        _check_parameter('bias', bias, (embed_dims,), x)
    for name, parameter in (('norm_weight', norm_weight), ('norm_bias', norm_bias)):
        if not normalize and parameter is not None:
            raise ValueError(f'{name}: expected None with normalize=False, got a tensor')
        _check_parameter(name, parameter, (channels,), x)
    if addend is not None:
        _check_low('addend', addend, embed_dims, x)
    if gate is not None:
        if addend is None:
            raise ValueError('addend: expected a tensor with gate, got None')
        _check_low('gate', gate, 1, x)
        if gate.shape[2:] != addend.shape[2:]:
            raise ValueError(
                f'gate: expected size {tuple(addend.shape[2:])} like addend, got '
                f'{tuple(gate.shape[2:])}'
            )
