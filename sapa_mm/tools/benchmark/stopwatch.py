"""The clock of the benchmark, and what makes its calls comparable."""

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable

import torch

# This is glibc's name for the size from which memory comes from the system and goes back to it.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 2**24
CPU_CACHE_BYTES = 2**25
# A GPU sleeps before a call, so that the call is queued when it wakes: two milliseconds (its cycles
# are taken for 2 GHz), or twice as long as launching the call took before.
HEAD_START_CYCLES = 4_000_000
LAUNCH_CYCLES = 4_000_000_000
# AMD's last cache has this size and lies behind the L2 that torch knows of.
HIP_CACHE_BYTES = 2**28


def cache_bytes(device: torch.device) -> int:
    """Return the size of the last cache that torch knows of; of a CPU, one that is large for it."""
    if device.type != 'cuda':
        return CPU_CACHE_BYTES
    size = torch.cuda.get_device_properties(device).L2_cache_size
    return max(size, HIP_CACHE_BYTES) if torch.version.hip else size


def start_alike() -> None:
    """Let every call get its large tensors fresh from the system, whatever ran before it."""
    if sys.platform == 'linux':
        with contextlib.suppress(OSError, AttributeError):  # C libraries other than glibc lack it
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
            libc.malloc_trim(0)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


class Stopwatch:
    """A `Stopwatch` times calls and a copy on a device.

    Args:
        device: The device, which also holds the tensors of the copy.
    """

    def __init__(self, device: torch.device):
        self.device = device
        cache = cache_bytes(device)
        self.source = torch.empty(max(4 * cache, 2**27), dtype=torch.uint8, device=device).random_()
        self.target = torch.empty_like(self.source)
        self.flushed = torch.zeros(
            2 * cache if device.type == 'cuda' else 0, device=device, dtype=torch.int8
        )

    def seconds(self, call: Callable[[], object], launch: float = 0.0) -> tuple[float, float]:
        """Time one call.

        Args:
            call: The call.
            launch: Seconds that launching it took before.

        Returns:
            Seconds of the device, and seconds until it was launched.
        """
        if self.device.type != 'cuda':
            start_alike()
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start,) * 2
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(max(HEAD_START_CYCLES, int(launch * LAUNCH_CYCLES)))
        self.flushed.add_(1)
        self.flushed.sum()  # so that the call need not write back what the line above left
        begin.record()
        start = time.perf_counter()
        call()
        launched = time.perf_counter() - start
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, launched

    def copy_bandwidth(self) -> float:
        """Return the bytes per second, read and written, of a copy of several times the cache."""
        seconds, _ = self.seconds(lambda: self.target.copy_(self.source))
        return 2 * self.source.nbytes / seconds
