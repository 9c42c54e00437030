"""Memory that is used again and again, and never by two at a time."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor


class Scratch:
    """Uninitialized tensors by name, whose memory is taken again: fresh pages are dear.

    A name that was taken cannot be taken again before it is given back, so that nobody overwrites
    what somebody else still reads. Where `torch.empty` fills what it returns, in PyTorch's
    deterministic mode, memory that is given back is filled likewise: use of it afterwards shows.

    Args:
        dtype: The dtype of all tensors, a floating one.
        device: The device that they lie on.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype = dtype
        self.device = device
        self._memory: dict[str, Tensor] = {}
        self._taken: set[str] = set()

    def take(self, name: str, *shape: int) -> Tensor:
        """Take a contiguous tensor, which holds anything.

        Raises:
            RuntimeError: The name was taken and not given back.
        """
        if name in self._taken:
            raise RuntimeError(f'scratch memory {name!r} is taken and was not given back')
        self._taken.add(name)
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self._memory[name][:size].view(shape)

    def give_back(self, *names: str) -> None:
        """Let names be taken again; the tensors that were taken by them must not be used any more.

        Raises:
            KeyError: A name was not taken.
        """
        for name in names:
            self._taken.remove(name)
            if (
                torch.are_deterministic_algorithms_enabled()
                and torch.utils.deterministic.fill_uninitialized_memory
            ):
                self._memory[name].fill_(torch.nan)

    def give_back_all(self) -> None:
        """Let all names be taken again."""
        self.give_back(*tuple(self._taken))

    @contextlib.contextmanager
    def lend(self, name: str, *shape: int) -> Iterator[Tensor]:
        """Take a tensor for the length of a with-block."""
        tensor = self.take(name, *shape)
        try:
            yield tensor
        finally:
            self.give_back(name)
