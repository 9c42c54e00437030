"""Window arithmetic of the PyTorch backend: geometry, strips and three batched products.

A map is worked off in strips, each a few low-resolution columns wide and as many rows long as fit
the cache, of several images where these are small. Inside a strip the K x K windows of a row of
cells are K*L consecutive rows of one matrix (L = cells + K - 1), so that correlating, gathering and
scattering are one batched matrix product each, over overlapping views. No tensor of K*K*C values
per pixel of the map ever exists.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BORDERS = ('zero', 'mask', 'replicate')

# Columns of cells in a strip: wider strips waste more of the banded products, narrower ones repeat
# more of the halo. 4, 10, 12 and 16 were no faster on a CPU with AVX-512.
STRIP_CELLS = 8
# Bytes of the largest tensor of a strip. On the CPU about the caches' size; elsewhere enough work
# for a launch.
CPU_STRIP_BYTES = 2**22
DEVICE_STRIP_BYTES = 2**27


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept in: float64 for float64, otherwise float32."""
    return dtype if dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of (N, C, H, W) are its innermost dimension in memory."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def empty_map(like: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Empty (N, channels, *size) with the batch, dtype, device and memory format of ``like``."""
    last = is_channels_last(like)
    return torch.empty(
        (like.shape[0], channels, *size),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def first_child(index: int, length: int, parent_length: int) -> int:
    """First of ``length`` positions whose parent, (i * parent_length) // length, is ``index``."""
    return -(-index * length // parent_length)


def are_symbols(*sizes: int) -> bool:
    """Whether sizes stand for any number, as while a program is exported: no case to tell apart."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def upsample_parent(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-parent upsampling: every output pixel takes the value of its parent.

    The parent of pixel i is ``(i * H) // Hg`` in integer arithmetic, which nearest interpolation,
    in floating point, misses at some sizes.

    Args:
        x: (N, C, H, W).
        size: (Hg, Wg), at least (H, W).

    Returns:
        (N, C, Hg, Wg), in the memory format of ``x``.
    """
    if is_channels_last(x):
        return _upsample_parent(x.permute(0, 2, 3, 1), 1, size).permute(0, 3, 1, 2)
    return _upsample_parent(x, 2, size)


def _upsample_parent(x: Tensor, axis: int, size: tuple[int, int]) -> Tensor:
    """`upsample_parent` of a map with rows and columns on ``axis`` and the next one."""
    (height, width), (out_height, out_width) = x.shape[axis : axis + 2], size
    exact = not are_symbols(height, width, out_height, out_width)
    if exact and out_height % height == 0 and out_width % width == 0:
        # A view and one copy; the gradient is a plain sum.
        x = x.unsqueeze(axis + 2).unsqueeze(axis + 1)
        shape = [-1] * x.dim()
        shape[axis + 1], shape[axis + 3] = out_height // height, out_width // width
        return x.expand(shape).flatten(axis + 2, axis + 3).flatten(axis, axis + 1)
    rows = torch.arange(out_height, device=x.device) * height // out_height
    columns = torch.arange(out_width, device=x.device) * width // out_width
    return x.index_select(axis, rows).index_select(axis + 1, columns)


class Strip(NamedTuple):
    """A rectangle of cells (low-resolution pixels) and the pixels whose parents they are.

    Cells y0..y1 x x0..x1 of some images are the parents of the pixels ``rows`` x ``columns``. Every
    cell has ``slots`` = (rows, columns) places for pixels; where the ratio is no integer some stay
    empty.

    The images lie above each other, and between the cells of two there are K - 1 rows of none, as
    many as their windows are higher than their cells. So the windows of all images are one run of
    rows, and so is everything that is computed from them; what the rows of no cells give is not
    read. "Rows" below counts those of all images with the gaps between them.
    """

    images: slice
    y0: int
    y1: int
    x0: int
    x1: int
    rows: slice
    columns: slice
    slots: tuple[int, int]

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def places(self) -> tuple[int, int, int]:
        """The places of a row of cells: (slot rows, cells, slot columns)."""
        return self.slots[0], self.x1 - self.x0, self.slots[1]

    @property
    def full(self) -> bool:
        """Whether every place holds a pixel."""
        height, width = self.cells
        return (
            self.rows.stop - self.rows.start == height * self.slots[0]
            and self.columns.stop - self.columns.start == width * self.slots[1]
        )


class Geometry:
    """Sizes of a window operator, the strips that cover its maps, and how a strip is read.

    Args:
        high: A high-resolution map (N, *, Hg, Wg).
        low: A low-resolution map (N, *, H, W).
        kernel_size: K.
        border: One of `BORDERS`.
    """

    def __init__(self, high: Tensor, low: Tensor, kernel_size: int, border: str = 'zero'):
        self.high_height, self.high_width = high.shape[2:]
        self.batch, _, self.height, self.width = low.shape
        self.device = low.device
        self.dtype = accumulation_dtype(low.dtype)
        self.kernel_size = kernel_size
        self.radius = kernel_size // 2
        self.border = border
        self._buffers: dict[str, Tensor] = {}

    def _scratch(self, name: str, *shape: int) -> Tensor:
        """Uninitialized memory that every strip takes again: fresh pages are dear."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self._buffers[name][:size].view(shape)

    def _scratch_rows(self, name: str, source: Tensor, rows: int, length: int) -> Tensor:
        """Scratch (rows, length, C) in the memory order of a map (N, C, H, W).

        With C innermost or outermost, the positions of consecutive rows are evenly spaced, so that
        several rows together are one matrix.
        """
        channels = source.shape[1]
        if is_channels_last(source):
            return self._scratch(name, rows, length, channels)
        return self._scratch(name, channels, rows, length).permute(1, 2, 0)

    def strips(self, channels: int) -> Iterator[Strip]:
        """Cover all images with strips.

        Args:
            channels: Channels of the widest map that is worked on.
        """
        # The most pixels that share a parent, along each axis.
        slots = (-(-self.high_height // self.height), -(-self.high_width // self.width))
        window = self.kernel_size * (STRIP_CELLS + self.kernel_size - 1)
        pixel_bytes = max(channels, window) * self.dtype.itemsize
        budget = CPU_STRIP_BYTES if self.device.type == 'cpu' else DEVICE_STRIP_BYTES
        row_bytes = min(self.width, STRIP_CELLS) * slots[0] * slots[1] * pixel_bytes
        step = max(1, budget // row_bytes)
        gap = self.kernel_size - 1
        together = max(1, (step + gap) // (self.height + gap))
        for image in range(0, self.batch, together):
            images = slice(image, min(image + together, self.batch))
            for x0 in range(0, self.width, STRIP_CELLS):
                x1 = min(x0 + STRIP_CELLS, self.width)
                columns = slice(*(first_child(x, self.high_width, self.width) for x in (x0, x1)))
                for y0 in range(0, self.height, step):
                    y1 = min(y0 + step, self.height)
                    rows = slice(*(first_child(y, self.high_height, self.height) for y in (y0, y1)))
                    yield Strip(images, y0, y1, x0, x1, rows, columns, slots)

    def _stacked(self, strip: Strip) -> int:
        """Rows of a strip: those of every image's cells, and the gaps between."""
        images = strip.images.stop - strip.images.start
        return images * (strip.cells[0] + self.kernel_size - 1) - (self.kernel_size - 1)

    def _by_image(self, rows: Tensor, strip: Strip) -> Tensor:
        """View the rows (rows, ...) of a strip as its cells (images, rows, ...)."""
        height, _ = strip.cells
        return rows.unfold(0, height, height + self.kernel_size - 1).movedim(-1, 1)

    def valid(self, strip: Strip) -> Tensor | None:
        """Which window positions of a strip's cells take part in the normalization.

        Returns:
            bool (rows, 1, columns, 1, K, K), to broadcast over the slots; None for all.
        """
        if self.border != 'mask':
            return None
        offset = torch.arange(self.kernel_size, device=self.device) - self.radius
        # A row without cells counts as the image's, to be normalized to something finite.
        row = torch.arange(self._stacked(strip), device=self.device)
        row = row % (strip.cells[0] + self.kernel_size - 1)
        y = strip.y0 + row.clamp(max=strip.cells[0] - 1)[:, None] + offset
        x = torch.arange(strip.x0, strip.x1, device=self.device)[:, None] + offset
        inside_y = (y >= 0) & (y < self.height)
        inside_x = (x >= 0) & (x < self.width)
        return inside_y[:, None, None, None, :, None] & inside_x[None, None, :, None, None, :]

    def _places(self, strip: Strip) -> tuple[Tensor, Tensor]:
        """Row of cells, and place in it, of each pixel of a strip: two (rows, columns)."""

        def place(pixels: slice, length: int, parents: int, first: int) -> tuple[Tensor, Tensor]:
            i = torch.arange(pixels.start, pixels.stop, device=self.device)
            parent = i * parents // length
            slot = i + (-parent * length) // parents  # i less the parent's first child
            return parent - first, slot

        y, slot_y = place(strip.rows, self.high_height, self.height, strip.y0)
        x, slot_x = place(strip.columns, self.high_width, self.width, strip.x0)
        _, width, sx = strip.places
        shape = (len(y), len(x))
        return y[:, None].expand(shape), slot_y[:, None] * (width * sx) + x * sx + slot_x

    def load_pixels(self, name: str, source: Tensor, strip: Strip, padding: int = 0) -> Tensor:
        """Read the pixels of a strip from a high-resolution map; empty places are 0.

        Args:
            name: Of the scratch memory to use.
            source: (N, C, Hg, Wg).
            strip: Which.
            padding: Rows of zeros to add above and below.

        Returns:
            (rows + 2 * padding, places, C), in the accumulation dtype and the memory order of the
            source.
        """
        height, _ = strip.cells
        sy, width, sx = strip.places
        rows = self._stacked(strip)
        out = self._scratch_rows(name, source, rows + 2 * padding, sy * width * sx)
        if rows + 2 * padding > height or not strip.full:
            out.zero_()
        cells = self._by_image(out[padding : padding + rows], strip)
        pixels = source[strip.images, :, strip.rows, strip.columns]
        if strip.full:
            pixels = pixels.unflatten(2, (height, sy)).permute(0, 2, 3, 4, 1)
            cells.unflatten(2, (sy, width * sx)).copy_(pixels)
        else:
            cells[(slice(None), *self._places(strip))] = pixels.permute(0, 2, 3, 1).to(out.dtype)
        return out

    def load_pixels_padded(self, name: str, source: Tensor, strip: Strip) -> tuple[Tensor, Tensor]:
        """`load_pixels` without padding and, over the same memory, with K - 1 rows of it."""
        padding = self.kernel_size - 1
        padded = self.load_pixels(name, source, strip, padding)
        return padded[padding : padding + self._stacked(strip)], padded

    def load_weights(self, source: Tensor, strip: Strip) -> Tensor:
        """Read a strip of (N, K*K, Hg, Wg): (rows, slots[0], columns, slots[1], K, K)."""
        pixels = self.load_pixels('weights', source, strip)
        return pixels.unflatten(1, strip.places).unflatten(4, (self.kernel_size, -1))

    def store_pixels(self, pixels: Tensor, target: Tensor, strip: Strip) -> None:
        """Write (rows, places, C), as `load_pixels` reads them, into a map (N, C, Hg, Wg)."""
        place = target[strip.images, :, strip.rows, strip.columns]
        cells = self._by_image(pixels, strip)
        if strip.full:
            sy, width, sx = strip.places
            place = place.unflatten(2, (strip.cells[0], sy))
            place.copy_(cells.unflatten(2, (sy, width * sx)).permute(0, 4, 1, 2, 3))
        else:
            place.copy_(cells[(slice(None), *self._places(strip))].permute(0, 3, 1, 2))

    def store_weights(self, weights: Tensor, target: Tensor, strip: Strip) -> None:
        """Write what `load_weights` reads into a map (N, K*K, Hg, Wg)."""
        self.store_pixels(weights.flatten(4).flatten(1, 3), target, strip)

    def _inside(self, strip: Strip) -> tuple[slice, slice, slice, slice]:
        """A strip's cells and halo, cut to the image: in the image (y, x), in the window (y, x)."""

        def cut(start: int, stop: int, length: int) -> tuple[slice, slice]:
            start, stop = start - self.radius, stop + self.radius
            inside = slice(max(start, 0), min(stop, length))
            return inside, slice(inside.start - start, inside.stop - start)

        image_y, window_y = cut(strip.y0, strip.y1, self.height)
        image_x, window_x = cut(strip.x0, strip.x1, self.width)
        return image_y, image_x, window_y, window_x

    def _windows(self, rows: Tensor, strip: Strip) -> Tensor:
        """View (rows + K - 1, columns + K - 1, C) as (images, rows + K - 1, columns + K - 1, C)."""
        return rows.unflatten(0, (-1, strip.cells[0] + 2 * self.radius))

    def load_window(self, name: str, source: Tensor, strip: Strip) -> Tensor:
        """Read a strip's cells and the halo around them from a low-resolution map.

        Args:
            name: Of the scratch memory to use.
            source: (N, C, H, W).
            strip: Which.

        Returns:
            (rows + K - 1, columns + K - 1, C), in the accumulation dtype and the memory order of
            the source; outside the image 0, or the edge with border ``'replicate'``.
        """
        image_y, image_x, y, x = self._inside(strip)
        rows, columns = self._stacked(strip) + 2 * self.radius, strip.cells[1] + 2 * self.radius
        out = self._scratch_rows(name, source, rows, columns).zero_()
        windows = self._windows(out, strip)
        windows[:, y, x] = source[strip.images, :, image_y, image_x].permute(0, 2, 3, 1)
        if self.border == 'replicate':
            windows[:, : y.start] = windows[:, y.start, None]
            windows[:, y.stop :] = windows[:, y.stop - 1, None]
            windows[:, :, : x.start] = windows[:, :, x.start, None]
            windows[:, :, x.stop :] = windows[:, :, x.stop - 1, None]
        return out

    def add_window(self, window: Tensor, target: Tensor, strip: Strip) -> None:
        """Add the gradient of `load_window`'s result to the gradient of its source.

        Args:
            window: (rows + K - 1, columns + K - 1, C); changed in place.
            target: (N, C, H, W), in the accumulation dtype.
            strip: Which.
        """
        image_y, image_x, y, x = self._inside(strip)
        windows = self._windows(window, strip)
        if self.border == 'replicate':
            windows[:, :, x.start] += windows[:, :, : x.start].sum(2)
            windows[:, :, x.stop - 1] += windows[:, :, x.stop :].sum(2)
            windows[:, y.start] += windows[:, : y.start].sum(1)
            windows[:, y.stop - 1] += windows[:, y.stop :].sum(1)
        target[strip.images, :, image_y, image_x] += windows[:, y, x].permute(0, 3, 1, 2)

    def _matrices(self, x: Tensor) -> Tensor:
        """View each run of K rows of (R + K - 1, L, C) as one matrix: (R, K * L, C)."""
        rows, length, channels = x.shape
        size = (rows - self.kernel_size + 1, self.kernel_size * length, channels)
        return x.as_strided(size, x.stride(), x.storage_offset())

    def _product(self, weights: Tensor, matrices: Tensor) -> Tensor:
        """Batched weights (B, P, Q) times matrices (B, Q, C), in the memory order of the latter."""
        (batch, rows, _), channels = weights.shape, matrices.shape[2]
        if matrices.stride(2) == 1:
            out = self._scratch('product', batch, rows, channels)
            return torch.bmm(weights, matrices, out=out)
        out = self._scratch('product', batch, channels, rows)
        torch.bmm(matrices.transpose(1, 2), weights.transpose(1, 2), out=out)
        return out.transpose(1, 2)

    def correlate(self, pixels: Tensor, window: Tensor, strip: Strip) -> Tensor:
        """Inner products of each pixel with the K x K window of its cell.

        Args:
            pixels: (rows, places, C), from `load_pixels`.
            window: (rows + K - 1, columns + K - 1, C), from `load_window`.
            strip: The strip of both.

        Returns:
            Contiguous (rows, slots[0], columns, slots[1], K, K).
        """
        (sy, width, sx), k = strip.places, self.kernel_size
        length = width + k - 1
        place = k * length
        dense = self._scratch('dense', len(pixels), sy * width * sx, place)
        torch.bmm(pixels, self._matrices(window).transpose(1, 2), out=dense)
        # A cell's window begins one column after that of the cell before.
        band = dense.as_strided(
            (len(pixels), sy, width, sx, k, k),
            (sy * width * sx * place, width * sx * place, sx * place + 1, place, length, 1),
        )
        return band.clone(memory_format=torch.contiguous_format)

    def gather(self, weights: Tensor, window: Tensor, strip: Strip) -> Tensor:
        """Weighted sum over the K x K window of each pixel's cell.

        Args:
            weights: (rows, slots[0], columns, slots[1], K, K).
            window: (rows + K - 1, columns + K - 1, C), from `load_window`.
            strip: The strip of both.

        Returns:
            (rows, places, C); scratch, like the result of `scatter`: use it before the next call.
        """
        sy, width, sx = strip.places
        length = width + self.kernel_size - 1
        place = self.kernel_size * length
        dense = self._scratch('dense', len(weights), sy * width * sx, place).zero_()
        dense.as_strided(
            weights.shape,
            (sy * width * sx * place, width * sx * place, sx * place + 1, place, length, 1),
        ).copy_(weights)
        return self._product(dense, self._matrices(window))

    def scatter(self, weights: Tensor, padded: Tensor, strip: Strip) -> Tensor:
        """Transpose of `gather`: every pixel adds its weighted self to the window of its cell.

        Row j of the window is fed by the cell rows j - K + 1 .. j, so the sum over them is part of
        the product and nothing has to be added up afterwards.

        Args:
            weights: (rows, slots[0], columns, slots[1], K, K).
            padded: Pixels (rows + 2 * (K - 1), places, C), from `load_pixels_padded`.
            strip: The strip of both.

        Returns:
            (rows + K - 1, columns + K - 1, C), scratch.
        """
        (sy, width, sx), k = strip.places, self.kernel_size
        places = sy * width * sx
        length = width + k - 1
        row = places * length
        # dense[j, i, p, l]: weight with which place p of cell row j - K + 1 + i feeds (j, l).
        dense = self._scratch('dense', len(weights) + k - 1, k * places, length).zero_()
        band = dense.as_strided(
            weights.shape,
            (k * row, width * sx * length, sx * length + 1, length, (k - 1) * row, 1),
            dense.storage_offset() + (k - 1) * row,
        )
        # Only the cells': what a row of none got from a value that is not finite must not spread.
        self._by_image(band, strip).copy_(self._by_image(weights, strip))
        return self._product(dense.transpose(1, 2), self._matrices(padded))
