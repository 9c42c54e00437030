"""These functions know the memory formats and dtypes of maps."""

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are kept in: float64 for float64, otherwise float32."""
    return dtype if dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Return whether the channels of (N, C, H, W) are its innermost dimension in memory."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def empty_map(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Return an empty (N, channels, *size) of the memory format, dtype and device of ``like``."""
    return torch.empty(
        (like.shape[0], channels, *size),
        dtype=like.dtype,
        device=like.device,
        memory_format=_memory_format(like),
    )


def in_format_of(like: Tensor, x: Tensor) -> Tensor:
    """Return (N, C, H, W) ``x`` contiguous in the memory format of ``like``, a copy if need be."""
    return x.contiguous(memory_format=_memory_format(like))


def embedding_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of an embedding of ``x`` (N, C, H, W).

    On GPUs the kernels that read it want a pixel's channels side by side; elsewhere it is that of
    ``x``.
    """
    return torch.channels_last if x.device.type == 'cuda' else _memory_format(x)
