"""Every operator follows this rule: the parent of pixel i is the cell (i * H) // Hg.

It is computed in integers: nearest interpolation, in floating point, misses it at some sizes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import is_channels_last


def parent(pixels: Tensor, length: int, parent_length: int) -> Tensor:
    """Return the parents of pixels.

    Args:
        pixels: Positions along an axis of the high-resolution map, int64.
        length: The length of that axis.
        parent_length: The length of the same axis of the low-resolution map.
    """
    return pixels * parent_length // length


def first_child(index: int | Tensor, length: int, parent_length: int) -> int | Tensor:
    """Return the first of ``length`` pixels whose `parent` is ``index``."""
    return -(-index * length // parent_length)


def parents(length: int, parent_length: int, device: torch.device) -> Tensor:
    """Return the `parent` of every pixel of an axis: int64 (length,)."""
    return parent(torch.arange(length, device=device), length, parent_length)


def are_symbols(*sizes: int) -> bool:
    """Return whether sizes stand for any number, as while a program is exported.

    There is no case to tell apart then.
    """
    return any(isinstance(size, torch.SymInt) for size in sizes)


def upsample_parent(x: Tensor, size: Sequence[int]) -> Tensor:
    """Upsample to nearest parents: every output pixel takes the value of its parent.

    Args:
        x: (N, C, H, W).
        size: (Hg, Wg), at least (H, W).

    Returns:
        (N, C, Hg, Wg), in the memory format of ``x``.
    """
    if is_channels_last(x):
        return _upsample_parent(x.permute(0, 2, 3, 1), 1, size).permute(0, 3, 1, 2)
    return _upsample_parent(x, 2, size)


def _upsample_parent(x: Tensor, axis: int, size: Sequence[int]) -> Tensor:
    """Do `upsample_parent` to a map with rows and columns on ``axis`` and the next one."""
    (height, width), (out_height, out_width) = x.shape[axis : axis + 2], size
    exact = not are_symbols(height, width, out_height, out_width)
    if exact and out_height % height == 0 and out_width % width == 0:
        # This is a view and one copy; the gradient is a plain sum.
        x = x.unsqueeze(axis + 2).unsqueeze(axis + 1)
        shape = [-1] * x.dim()
        shape[axis + 1], shape[axis + 3] = out_height // height, out_width // width
        return x.expand(shape).flatten(axis + 2, axis + 3).flatten(axis, axis + 1)
    rows = parents(out_height, height, x.device)
    columns = parents(out_width, width, x.device)
    return x.index_select(axis, rows).index_select(axis + 1, columns)
