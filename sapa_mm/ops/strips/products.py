"""A strip is worked on by three batched products."""

import torch
from torch import Tensor

from .geometry import Strip
from .transfer import add_window, store_pixels


def _matrices(x: Tensor, kernel_size: int) -> Tensor:
    """View each run of K rows of (R + K - 1, L, C) as one matrix: (R, K * L, C)."""
    rows, length, channels = x.shape
    size = (rows - kernel_size + 1, kernel_size * length, channels)
    return x.as_strided(size, x.stride(), x.storage_offset())


def _product(strip: Strip, weights: Tensor, rows: Tensor) -> Tensor:
    """Multiply weights (B, P, Q) with the matrices (B, Q, C) of some rows, in their memory order.

    The product (B, P, C) is scratch of the name 'product'.
    """
    matrices = _matrices(rows, strip.geometry.kernel_size)
    batch, places, channels = len(weights), weights.shape[1], matrices.shape[2]
    if matrices.stride(2) == 1:
        out = strip.geometry.scratch.take('product', batch, places, channels)
        return torch.bmm(weights, matrices, out=out)
    out = strip.geometry.scratch.take('product', batch, channels, places)
    torch.bmm(matrices.transpose(1, 2), weights.transpose(1, 2), out=out)
    return out.transpose(1, 2)


def correlate(strip: Strip, pixels: Tensor, window: Tensor) -> Tensor:
    """Multiply each pixel with the K x K window of its cell, into inner products.

    Args:
        strip: The strip of both.
        pixels: (rows, places, C), from `load_pixels`.
        window: (rows + K - 1, columns + K - 1, C), from `load_window`.

    Returns:
        Contiguous (rows, slots[0], columns, slots[1], K, K).
    """
    (sy, width, sx), k = strip.places, strip.geometry.kernel_size
    length = width + k - 1
    place = k * length
    dense = strip.geometry.scratch.take('dense', len(pixels), sy * width * sx, place)
    torch.bmm(pixels, _matrices(window, k).transpose(1, 2), out=dense)
    # A cell's window begins one column after that of the cell before.
    band = dense.as_strided(
        (len(pixels), sy, width, sx, k, k),
        (sy * width * sx * place, width * sx * place, sx * place + 1, place, length, 1),
    )
    products = band.clone(memory_format=torch.contiguous_format)
    strip.geometry.scratch.give_back('dense')
    return products


def gather(strip: Strip, weights: Tensor, window: Tensor, target: Tensor) -> None:
    """Write, for each pixel, the weighted sum over the K x K window of its cell.

    Args:
        strip: The strip of both.
        weights: (rows, slots[0], columns, slots[1], K, K).
        window: (rows + K - 1, columns + K - 1, C), from `load_window`.
        target: A map (N, C, Hg, Wg), whose pixels of the strip are written to.
    """
    (sy, width, sx), k = strip.places, strip.geometry.kernel_size
    length = width + k - 1
    place = k * length
    dense = strip.geometry.scratch.take('dense', len(weights), sy * width * sx, place).zero_()
    dense.as_strided(
        weights.shape,
        (sy * width * sx * place, width * sx * place, sx * place + 1, place, length, 1),
    ).copy_(weights)
    store_pixels(strip, _product(strip, dense, window), target)
    strip.geometry.scratch.give_back('dense', 'product')


def scatter(strip: Strip, weights: Tensor, padded: Tensor, target: Tensor) -> None:
    """Do the transpose of `gather`: add each pixel's weighted self to the window of its cell.

    Row j of the window is fed by the cell rows j - K + 1 .. j, so the sum over them is part of
    the product and nothing has to be added up afterwards.

    Args:
        strip: The strip of both.
        weights: (rows, slots[0], columns, slots[1], K, K).
        padded: Pixels (rows + 2 * (K - 1), places, C), from `load_pixels_padded`.
        target: A map (N, C, H, W) in the accumulation dtype, to which the windows are added.
    """
    (sy, width, sx), k = strip.places, strip.geometry.kernel_size
    places = sy * width * sx
    length = width + k - 1
    row = places * length
    rows = len(weights) + k - 1
    # dense[j, i, p, l] is the weight by which place p of cell row j - K + 1 + i feeds (j, l).
    dense = strip.geometry.scratch.take('dense', rows, k * places, length).zero_()
    band = dense.as_strided(
        weights.shape,
        (k * row, width * sx * length, sx * length + 1, length, (k - 1) * row, 1),
        dense.storage_offset() + (k - 1) * row,
    )
    # Only cells take part: rows of none may hold what is not finite, which must not spread.
    strip.by_image(band).copy_(strip.by_image(weights))
    add_window(strip, _product(strip, dense.transpose(1, 2), padded), target)
    strip.geometry.scratch.give_back('dense', 'product')
