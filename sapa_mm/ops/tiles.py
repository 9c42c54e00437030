"""Filters that all channels of a map share, applied to overlapping square tiles by one product."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import is_channels_last

#: A tile has so many pixels down and across.
STEP = 8


def tile_product(x: Tensor, filters: Tensor, before: int) -> Tensor:
    """Multiply what surrounds every tile of ``STEP`` x ``STEP`` pixels by filters.

    Outside the map it is 0. The gradient copies the tiles again, as they take more than twice the
    memory of the map, and adds up whole blocks of pixels in a fixed order.

    Args:
        x: (N, C, H, W), any strides.
        filters: (N, M, P, P), of the dtype of ``x``; P is at least ``STEP``.
        before: So many rows above a tile, and columns on its left, belong to its surroundings,
            which have P.

    Returns:
        (M, N, C, tiles down, tiles across), innermost in memory C, or M where ``x`` is not
        channels_last.
    """
    grid = _Grid.of(x, filters.shape[-1], before)
    out = _TileProduct.apply(x, filters, grid)
    if grid.channels_last:
        return out.unflatten(2, (*grid.tiles, -1)).permute(1, 0, 4, 2, 3)
    return out.unflatten(1, (-1, *grid.tiles)).permute(4, 0, 1, 2, 3)


class _Grid(NamedTuple):
    """How tiles cover a map."""

    tiles: tuple[int, int]
    extent: int  # P
    before: int
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor, extent: int, before: int) -> '_Grid':
        height, width = (-(-side // STEP) for side in x.shape[2:])
        return cls((height, width), extent, before, is_channels_last(x))

    def gather(self, x: Tensor) -> Tensor:
        """Copy the surroundings of tiles: (N, P*P, tiles*C) if channels_last, or (N, C*tiles, P*P).

        A product reads either as it lies in memory.
        """
        after = [
            STEP * (count - 1) + self.extent - self.before - side
            for count, side in zip(self.tiles, x.shape[2:], strict=True)
        ]
        x = F.pad(x, (self.before, after[1], self.before, after[0]))
        tiles = x.unfold(2, self.extent, STEP).unfold(3, self.extent, STEP)
        if self.channels_last:
            return tiles.permute(0, 4, 5, 2, 3, 1).reshape(len(x), self.extent**2, -1)
        return tiles.reshape(len(x), -1, self.extent**2)

    def add_up(self, tiles: Tensor, shape: torch.Size) -> Tensor:
        """Add up what `gather` copied: (N, C, H, W) of a shape."""
        n, channels, height, width = shape
        # A tile's surroundings fall into blocks of which each pixel of the map has one of a kind.
        pieces = [
            slice(start, min(start + STEP, self.extent)) for start in range(0, self.extent, STEP)
        ]
        rows, columns = (count + len(pieces) - 1 for count in self.tiles)
        square = (self.extent, self.extent)
        if self.channels_last:
            tiles = tiles.view(n, *square, *self.tiles, channels).permute(0, 5, 3, 4, 1, 2)
            out = tiles.new_zeros(n, rows, STEP, columns, STEP, channels).permute(0, 5, 1, 2, 3, 4)
        else:
            tiles = tiles.view(n, channels, *self.tiles, *square)
            out = tiles.new_zeros(n, channels, rows, STEP, columns, STEP)
        blocks = out.permute(0, 1, 2, 4, 3, 5)
        for (i, y), (j, x) in itertools.product(enumerate(pieces), repeat=2):
            part = blocks[:, :, i : i + self.tiles[0], j : j + self.tiles[1]]
            part[..., : y.stop - y.start, : x.stop - x.start].add_(tiles[..., y, x])
        first = self.before
        out = out.flatten(4, 5).flatten(2, 3)
        return out[:, :, first : first + height, first : first + width]


class _TileProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, filters: Tensor, grid: _Grid) -> Tensor:
        ctx.save_for_backward(x, filters)
        ctx.grid = grid
        filters, tiles = filters.flatten(2), grid.gather(x)
        return torch.bmm(filters, tiles) if grid.channels_last else torch.bmm(tiles, filters.mT)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, filters = ctx.saved_tensors
        grid, matrix = ctx.grid, filters.flatten(2)
        grad = grad if grid.channels_last else grad.mT
        grad_x = grad_filters = None
        if ctx.needs_input_grad[0]:
            tiles = matrix.mT @ grad if grid.channels_last else grad.mT @ matrix
            grad_x = grid.add_up(tiles, x.shape)
        if ctx.needs_input_grad[1]:
            tiles = grid.gather(x)
            tiles = tiles.mT if grid.channels_last else tiles
            grad_filters = torch.bmm(grad, tiles).view_as(filters)
        return grad_x, grad_filters, None
