"""Strips cover the maps of an operator; each holds some cells and the pixels that are theirs."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..layout import accumulation_dtype
from ..parents import first_child, parent
from .scratch import Scratch

# A strip has so many columns of cells: wider ones waste more of the banded products, narrower ones
# repeat more of the halo. Strips of 4, 10, 12 and 16 were no faster on a CPU with AVX-512.
STRIP_CELLS = 8
# The largest tensor of a strip has so many bytes: about the caches' size on the CPU, and elsewhere
# enough work for a launch.
CPU_STRIP_BYTES = 2**22
DEVICE_STRIP_BYTES = 2**27


class Geometry:
    """This knows the sizes of a window operator, and covers its maps with strips.

    Args:
        high: A high-resolution map (N, *, Hg, Wg).
        low: A low-resolution map (N, *, H, W).
        kernel_size: K.
        border: One of the borders of point affiliation.
    """

    def __init__(self, high: Tensor, low: Tensor, kernel_size: int, border: str = 'zero'):
        self.high_height, self.high_width = high.shape[2:]
        self.batch, _, self.height, self.width = low.shape
        self.kernel_size = kernel_size
        self.radius = kernel_size // 2
        self.border = border
        #: The memory for what a strip is computed from, which the next strip takes again.
        self.scratch = Scratch(accumulation_dtype(low.dtype), low.device)

    def strips(self, channels: int) -> Iterator['Strip']:
        """Cover all images with strips; the scratch memory of one is given back before the next.

        Args:
            channels: Channels of the widest map that is worked on.
        """
        # This many pixels, at most, share a parent along each axis.
        slots = (-(-self.high_height // self.height), -(-self.high_width // self.width))
        window = self.kernel_size * (STRIP_CELLS + self.kernel_size - 1)
        pixel_bytes = max(channels, window) * self.scratch.dtype.itemsize
        on_cpu = self.scratch.device.type == 'cpu'
        budget = CPU_STRIP_BYTES if on_cpu else DEVICE_STRIP_BYTES
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
                    yield Strip(self, images, y0, y1, x0, x1, rows, columns, slots)
                    self.scratch.give_back()


def _cut(start: int, stop: int, length: int) -> tuple[slice, slice]:
    """Cut positions start..stop to 0..length; the second slice counts from ``start``."""
    inside = slice(max(start, 0), min(stop, length))
    return inside, slice(inside.start - start, inside.stop - start)


class Strip:
    """A strip is a rectangle of cells (low-resolution pixels) and of the pixels that are theirs.

    Cells y0..y1 x x0..x1 of some images are the parents of the pixels ``rows`` x ``columns``. Every
    cell has ``slots`` = (rows, columns) places for pixels; where the ratio is no integer some stay
    empty.

    The images lie above each other, and between the cells of two there are K - 1 rows of none, as
    many as their windows are higher than their cells. So the windows of all images are one run of
    rows, and so is everything that is computed from them; what the rows of no cells give is not
    read. "Rows" below counts those of all images with the gaps between them.
    """

    def __init__(
        self,
        geometry: Geometry,
        images: slice,
        y0: int,
        y1: int,
        x0: int,
        x1: int,
        rows: slice,
        columns: slice,
        slots: tuple[int, int],
    ):
        self.geometry = geometry
        self.images = images
        self.y0, self.y1, self.x0, self.x1 = y0, y1, x0, x1
        self.rows, self.columns = rows, columns
        height, width = y1 - y0, x1 - x0
        #: The numbers (rows, columns) of an image's cells.
        self.cells = height, width
        #: The places of a row of cells: (slot rows, cells, slot columns).
        self.places = slots[0], width, slots[1]
        #: Whether every place holds a pixel.
        self.full = (
            rows.stop - rows.start == height * slots[0]
            and columns.stop - columns.start == width * slots[1]
        )
        gap = geometry.kernel_size - 1
        #: The number of rows: those of every image's cells, and the gaps between.
        self.stacked = (images.stop - images.start) * (height + gap) - gap
        image_y, window_y = _cut(y0 - geometry.radius, y1 + geometry.radius, geometry.height)
        image_x, window_x = _cut(x0 - geometry.radius, x1 + geometry.radius, geometry.width)
        #: The cells and the halo, cut to the image: in it (y, x), in the window (y, x).
        self.inside = image_y, image_x, window_y, window_x

    def by_image(self, rows: Tensor) -> Tensor:
        """View rows (rows, ...) as those of the cells alone (images, rows, ...)."""
        height, _ = self.cells
        return rows.unfold(0, height, height + self.geometry.kernel_size - 1).movedim(-1, 1)

    def windows_by_image(self, window: Tensor) -> Tensor:
        """View (rows + K - 1, columns + K - 1, C) as (images, rows + K - 1, columns + K - 1, C)."""
        return window.unflatten(0, (-1, self.cells[0] + 2 * self.geometry.radius))

    @cached_property
    def places_of_pixels(self) -> tuple[Tensor, Tensor]:
        """Return the row of cells, and the place in it, of each pixel: two (rows, columns)."""
        geometry = self.geometry

        def place(pixels: slice, length: int, cells: int, first: int) -> tuple[Tensor, Tensor]:
            i = torch.arange(pixels.start, pixels.stop, device=geometry.scratch.device)
            cell = parent(i, length, cells)
            return cell - first, i - first_child(cell, length, cells)

        y, slot_y = place(self.rows, geometry.high_height, geometry.height, self.y0)
        x, slot_x = place(self.columns, geometry.high_width, geometry.width, self.x0)
        _, width, sx = self.places
        shape = (len(y), len(x))
        return y[:, None].expand(shape), slot_y[:, None] * (width * sx) + x * sx + slot_x

    def valid(self) -> Tensor | None:
        """Return which window positions of the cells take part in the normalization.

        Returns:
            bool (rows, 1, columns, 1, K, K), to broadcast over the slots; None for all.
        """
        geometry = self.geometry
        if geometry.border != 'mask':
            return None
        device = geometry.scratch.device
        offset = torch.arange(geometry.kernel_size, device=device) - geometry.radius
        # A row without cells counts as the image's, to be normalized to something finite.
        row = torch.arange(self.stacked, device=device)
        row = row % (self.cells[0] + geometry.kernel_size - 1)
        y = self.y0 + row.clamp(max=self.cells[0] - 1)[:, None] + offset
        x = torch.arange(self.x0, self.x1, device=device)[:, None] + offset
        inside_y = (y >= 0) & (y < geometry.height)
        inside_x = (x >= 0) & (x < geometry.width)
        return inside_y[:, None, None, None, :, None] & inside_x[None, None, :, None, None, :]
