"""Scratch memory is used again and again, and never by two at a time."""

import math

import torch
from torch import Tensor


class Scratch:
    """This hands out uninitialized tensors by name, in memory used before: fresh pages are dear.

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
        self._fills = (
            torch.are_deterministic_algorithms_enabled()
            # torch makes this module's attributes at run time, out of a type checker's sight.
            and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        )

    def take(self, name: str, *shape: int) -> Tensor:
        """Take a contiguous tensor, which holds anything.

        Raises:
            RuntimeError: The name was taken and not given back.
        """
        if name in self._taken:
            raise RuntimeError(f'scratch memory {name!r} is taken and was not given back')
        self._taken.add(name)
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size:
            memory = torch.empty(size, dtype=self.dtype, device=self.device)
            self._memory[name] = memory
        return memory[:size].view(shape)

    def give_back(self, *names: str) -> None:
        """Let names be taken again; the tensors that were taken by them must not be used any more.

        Args:
            *names: The names. Without any, all that were taken are given back.

        Raises:
            KeyError: A name was not taken.
        """
        for name in names or tuple(self._taken):
            self._taken.remove(name)
            if self._fills:
                self._memory[name].fill_(torch.nan)
