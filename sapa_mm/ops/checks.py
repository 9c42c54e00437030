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
