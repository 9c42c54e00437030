"""Maps are read into the scratch memory of a strip, and written from it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..layout import accumulation_dtype, is_channels_last
from .geometry import Strip


def _take_rows(strip: Strip, name: str, source: Tensor, rows: int, length: int) -> Tensor:
    """Take scratch (rows, length, C) in the memory order of a map (N, C, H, W).

    With C innermost or outermost, the positions of consecutive rows are evenly spaced, so that
    several rows together are one matrix.
    """
    channels = source.shape[1]
    if is_channels_last(source):
        return strip.geometry.scratch.take(name, rows, length, channels)
    return strip.geometry.scratch.take(name, channels, rows, length).permute(1, 2, 0)


def load_pixels(strip: Strip, name: str, source: Tensor, padding: int = 0) -> Tensor:
    """Read the pixels of a strip from a high-resolution map; empty places are 0.

    Args:
        strip: The strip.
        name: The name of the scratch memory to take.
        source: (N, C, Hg, Wg).
        padding: Rows of zeros to add above and below.

    Returns:
        (rows + 2 * padding, places, C), in the accumulation dtype and the memory order of the
        source; scratch until the next strip.
    """
    height, _ = strip.cells
    sy, width, sx = strip.places
    rows = strip.stacked
    out = _take_rows(strip, name, source, rows + 2 * padding, sy * width * sx)
    if rows + 2 * padding > height or not strip.full:
        out.zero_()
    cells = strip.by_image(out[padding : padding + rows])
    pixels = source[strip.images, :, strip.rows, strip.columns]
    if strip.full:
        pixels = pixels.unflatten(2, (height, sy)).permute(0, 2, 3, 4, 1)
        cells.unflatten(2, (sy, width * sx)).copy_(pixels)
    else:
        places = (slice(None), *strip.places_of_pixels)
        cells[places] = pixels.permute(0, 2, 3, 1).to(out.dtype)
    return out


def load_pixels_padded(strip: Strip, name: str, source: Tensor) -> tuple[Tensor, Tensor]:
    """Do `load_pixels` without padding and, over the same memory, with K - 1 rows of it."""
    padding = strip.geometry.kernel_size - 1
    padded = load_pixels(strip, name, source, padding)
    return padded[padding : padding + strip.stacked], padded


def load_weights(strip: Strip, name: str, source: Tensor) -> Tensor:
    """Read a strip of (N, K*K, Hg, Wg): (rows, slots[0], columns, slots[1], K, K)."""
    pixels = load_pixels(strip, name, source)
    return pixels.unflatten(1, strip.places).unflatten(4, (strip.geometry.kernel_size, -1))


def store_pixels(strip: Strip, pixels: Tensor, target: Tensor) -> None:
    """Write (rows, places, C), as `load_pixels` reads them, into a map (N, C, Hg, Wg)."""
    place = target[strip.images, :, strip.rows, strip.columns]
    cells = strip.by_image(pixels)
    if strip.full:
        sy, width, sx = strip.places
        place = place.unflatten(2, (strip.cells[0], sy))
        place.copy_(cells.unflatten(2, (sy, width * sx)).permute(0, 4, 1, 2, 3))
    else:
        places = (slice(None), *strip.places_of_pixels)
        place.copy_(cells[places].permute(0, 3, 1, 2))


def store_weights(strip: Strip, weights: Tensor, target: Tensor) -> None:
    """Write what `load_weights` reads into a map (N, K*K, Hg, Wg)."""
    store_pixels(strip, weights.flatten(4).flatten(1, 3), target)


def load_window(strip: Strip, name: str, source: Tensor) -> Tensor:
    """Read a strip's cells and the halo around them from a low-resolution map.

    Args:
        strip: The strip.
        name: The name of the scratch memory to take.
        source: (N, C, H, W).

    Returns:
        (rows + K - 1, columns + K - 1, C), in the accumulation dtype and the memory order of the
        source; outside the image 0, or the edge with border ``'replicate'``; scratch until the next
        strip.
    """
    halo = 2 * strip.geometry.radius
    image_y, image_x, y, x = strip.inside
    out = _take_rows(strip, name, source, strip.stacked + halo, strip.cells[1] + halo).zero_()
    windows = strip.windows_by_image(out)
    windows[:, y, x] = source[strip.images, :, image_y, image_x].permute(0, 2, 3, 1)
    if strip.geometry.border == 'replicate':
        windows[:, : y.start] = windows[:, y.start, None]
        windows[:, y.stop :] = windows[:, y.stop - 1, None]
        windows[:, :, : x.start] = windows[:, :, x.start, None]
        windows[:, :, x.stop :] = windows[:, :, x.stop - 1, None]
    return out


def add_window(strip: Strip, window: Tensor, target: Tensor) -> None:
    """Add the gradient of `load_window`'s result to the gradient of its source.

    Args:
        strip: The strip.
        window: (rows + K - 1, columns + K - 1, C); changed in place.
        target: (N, C, H, W), in the accumulation dtype.
    """
    image_y, image_x, y, x = strip.inside
    windows = strip.windows_by_image(window)
    if strip.geometry.border == 'replicate':
        windows[:, :, x.start] += windows[:, :, : x.start].sum(2)
        windows[:, :, x.stop - 1] += windows[:, :, x.stop :].sum(2)
        windows[:, y.start] += windows[:, : y.start].sum(1)
        windows[:, y.stop - 1] += windows[:, y.stop :].sum(1)
    target[strip.images, :, image_y, image_x] += windows[:, y, x].permute(0, 3, 1, 2)


@contextlib.contextmanager
def summed(target: Tensor | None) -> Iterator[Tensor | None]:
    """Lend zeros to add to, of the accumulation dtype; ``target`` receives them after the block.

    Without a target there is nothing to lend.
    """
    if target is None:
        yield None
        return
    dtype = accumulation_dtype(target.dtype)
    sums = target.zero_() if target.dtype == dtype else torch.zeros_like(target, dtype=dtype)
    yield sums
    if sums is not target:
        target.copy_(sums)
