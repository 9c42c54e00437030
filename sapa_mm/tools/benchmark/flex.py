"""Point affiliation by torch's flex_attention."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .shapes import Shape

if TYPE_CHECKING:  # older versions of torch do not have it
    from torch.nn.attention.flex_attention import BlockMask

Pair = tuple[int, int]

# Queries and keys are put in the order of tiles of cells, so that a block of FLEX_BLOCK queries
# (at ratio 2 one tile) meets few blocks of keys.
FLEX_BLOCK = 128
QUERY_TILE, KEY_TILE = (4, 8), (8, 16)


def to_tiles(x: Tensor, tile: Pair) -> Tensor:
    """Put the pixels of (N, C, H, W) in the order of whole tiles: (N, 1, H*W, C)."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // tile[0], tile[0], w // tile[1], tile[1])
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, 1, h * w, c)


def from_tiles(x: Tensor, tile: Pair, size: Pair) -> Tensor:
    """Undo `to_tiles`: (N, 1, H*W, C) to (N, C, H, W) of this size, channels last."""
    n, _, _, c = x.shape
    x = x.reshape(n, size[0] // tile[0], size[1] // tile[1], *tile, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, *size, c).permute(0, 3, 1, 2)


def tile_positions(size: Pair, tile: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows and the columns of a map's pixels in the order of `to_tiles`, (H*W,) each."""
    axes = [torch.arange(length, device=device, dtype=torch.int32) for length in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing='ij'))
    rows, columns = to_tiles(grid[None], tile)[0, 0].T.contiguous().unbind()
    return rows, columns


@dataclass(frozen=True)
class Tiling:
    """A `Tiling` says how the maps of a step are extended to whole tiles.

    Attributes:
        query_tile: Rows and columns of a tile of queries.
        high: (H, W) of the extended high-resolution maps.
        low: (H, W) of the extended low-resolution maps, which begin half a window early.
    """

    query_tile: Pair
    high: Pair
    low: Pair

    @classmethod
    def of(cls, shape: Shape) -> 'Tiling':
        """Return the smallest one that holds the maps of a shape and their windows."""

        def whole(length: int, tile: int) -> int:
            return -(-length // tile) * tile

        s, k = shape.ratio, shape.kernel_size
        cells = whole(shape.height, QUERY_TILE[0]), whole(shape.width, QUERY_TILE[1])
        return cls(
            query_tile=(QUERY_TILE[0] * s, QUERY_TILE[1] * s),
            high=(cells[0] * s, cells[1] * s),
            low=(whole(cells[0] + k - 1, KEY_TILE[0]), whole(cells[1] + k - 1, KEY_TILE[1])),
        )


def window_mask(shape: Shape, tiling: Tiling, device: torch.device) -> 'BlockMask':
    """Make the mask that lets every query meet the keys of its window alone.

    Args:
        shape: The sizes.
        tiling: The tiling of this shape.
        device: Device of the tensors.

    Raises:
        ImportError: This version of torch has no flex_attention.
    """
    from torch.nn.attention.flex_attention import BlockMask

    k = shape.kernel_size
    # These are rows and columns by index: where a query's window begins, and where a key lies.
    query_y, query_x = (
        x // shape.ratio for x in tile_positions(tiling.high, tiling.query_tile, device)
    )
    key_y, key_x = tile_positions(tiling.low, KEY_TILE, device)

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        y, x = key_y[key] - query_y[query], key_x[key] - query_x[query]
        return (y >= 0) & (y < k) & (x >= 0) & (x < k)

    key_index = torch.empty(tiling.low, dtype=torch.int64, device=device)
    key_index[key_y, key_x] = torch.arange(len(key_y), device=device)
    offset = torch.arange(k, device=device)
    windows = key_index[
        query_y[:, None, None] + offset[:, None], query_x[:, None, None] + offset
    ]  # (queries, K, K)
    blocks = [-(-len(x) // FLEX_BLOCK) for x in (query_y, key_y)]
    used = torch.zeros(blocks, dtype=torch.int32, device=device)
    query_block = torch.arange(len(query_y), device=device) // FLEX_BLOCK
    used[query_block[:, None, None], windows // FLEX_BLOCK] = 1
    return BlockMask.from_kv_blocks(
        used.sum(1, dtype=torch.int32)[None, None],
        used.argsort(dim=1, descending=True, stable=True).int()[None, None],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=in_window,
        seq_lengths=(len(query_y), len(key_y)),
    )


def flex_affiliation(
    shape: Shape, device: torch.device, compiler: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Tensor]:
    """Make point affiliation by flex_attention: keys outside a pixel's window are masked.

    The window positions outside the image, which take part with score and value 0, are zeros
    around the two low-resolution maps. The mask is made here, once: no call pays for it.

    Args:
        shape: The sizes.
        device: Device of the tensors.
        compiler: What compiles the three parts: into tiles, attention, and back. (Compiled in one,
            they fail on a CPU: torch's template for it wants no views. No kernel spans two parts.)

    Returns:
        Function of query, key and value.

    Raises:
        ImportError: This version of torch has no flex_attention.
    """
    from torch.nn.attention.flex_attention import flex_attention

    tiling = Tiling.of(shape)
    query_tile, high, (low_h, low_w) = tiling.query_tile, tiling.high, tiling.low
    out_h, out_w = shape.height * shape.ratio, shape.width * shape.ratio
    before = shape.kernel_size // 2
    border = (before, low_w - shape.width - before, before, low_h - shape.height - before)

    @compiler
    def prepare(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = F.pad(query, (0, high[1] - out_w, 0, high[0] - out_h))
        key, value = [to_tiles(F.pad(x, border), KEY_TILE) for x in (key, value)]
        return to_tiles(query, query_tile), key, value

    @compiler
    def finish(out: Tensor, layout: torch.memory_format) -> Tensor:
        out = from_tiles(out, query_tile, high)[:, :, :out_h, :out_w]
        return out.contiguous(memory_format=layout)

    mask = window_mask(shape, tiling, device)
    attend = compiler(partial(flex_attention, block_mask=mask, scale=1.0))

    def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        last = value.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return finish(attend(*prepare(query, key, value)), layout)

    return flex
