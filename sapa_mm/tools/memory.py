"""What memory a matting network takes to predict, before it does, and what is free."""

import copy
import functools
import math
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..matting import trimap_sample
from ..matting.network import STRIDE

GIB = 2**30
#: What allocators and convolutions take beyond the tensors, as a factor.
ALLOWANCE = 1.1


class LiveStorages(TorchDispatchMode):
    """Follows the bytes of the tensors that operators make, for as long as those live.

    Attributes:
        live: Bytes of the storages that are alive.
        peak: The most that ``live`` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operator and count what it made."""
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, unless it is one of before, until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size

        def forget() -> None:
            self._known.discard(key)
            self.live -= size

        weakref.finalize(storage, forget)


@functools.lru_cache(maxsize=32)  # the images of a folder often have one size
def estimate_memory(model: BaseModel, size: tuple[int, int]) -> int:
    """Estimate the memory that a matting network takes to predict one image, beyond its weights.

    The network runs on tensors without data, and what its tensors take at the worst moment is
    raised by a tenth. On a CPU the real peak was 3 to 7 % below that, for images of 0.6 to 12
    million pixels; for small ones the C library's allocator may keep up to 0.1 GiB more. On GPUs
    the workspaces of convolutions, which are not counted, depend on the GPU and on cuDNN's
    settings.

    Args:
        model: A `GuidedMattingNet`, on any device.
        size: Height and width of the image.

    Returns:
        Bytes.
    """
    height, width = size
    network = copy.deepcopy(model).to('meta').eval()
    sample = trimap_sample(np.empty(size, np.uint8))
    with LiveStorages() as storages, torch.no_grad():
        inputs = torch.empty(1, 4, height, width, device='meta')
        network(inputs, [sample.to('meta')], mode='predict')
    return int(ALLOWANCE * storages.peak)


def fitting_side(model: BaseModel, size: tuple[int, int], memory: int) -> int | None:
    """Find to which longer side an image has to be reduced for the memory that there is.

    Args:
        model: A `GuidedMattingNet`.
        size: Height and width of the image.
        memory: Bytes.

    Returns:
        A multiple of 16, nearly the largest; None if there is none.
    """
    longer = max(size)
    side = longer
    while side >= STRIDE:
        scale = side / longer
        needed = estimate_memory(model, (math.ceil(scale * size[0]), math.ceil(scale * size[1])))
        if needed <= memory:
            return side
        side = int(side * min(0.97, math.sqrt(max(memory, 0) / needed))) // STRIDE * STRIDE
    return None


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, the CPU's by what the system calls available."""
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has reserved and does not use is free to it as well.
        reserved, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        return free + reserved - used
    table = Path('/proc/meminfo')
    if table.is_file():
        for line in table.read_text(encoding='ascii').splitlines():
            if line.startswith('MemAvailable:'):
                return 1024 * int(line.split()[1])
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
