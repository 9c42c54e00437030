"""The system is given hints about large tensors on the CPU."""

import contextlib
import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

from torch import Tensor

# Below this a few page faults more do not show.
LARGE_BYTES = 2**22


@functools.cache
def _madvise() -> Callable | None:
    """Return the C library's madvise, on Linux."""
    if not sys.platform.startswith('linux') or not hasattr(mmap, 'MADV_HUGEPAGE'):
        return None
    with contextlib.suppress(OSError, AttributeError):
        function = ctypes.CDLL(None).madvise
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        return function
    return None


def prefer_huge_pages(x: Tensor) -> None:
    """Ask the system to back a fresh large CPU tensor with huge pages.

    Faulting in a result of 32 MiB 4 KiB at a time takes as long as computing it. Linux's usual
    setting gives huge pages to those who ask. It is only a hint: where it cannot be followed
    nothing changes.

    Args:
        x: A tensor that was just allocated and is contiguous in memory.
    """
    if x.device.type == 'cpu' and x.nbytes >= LARGE_BYTES and (advise := _madvise()):
        start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, x.data_ptr() + x.nbytes - start, mmap.MADV_HUGEPAGE)
