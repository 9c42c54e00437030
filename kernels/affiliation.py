"""Point affiliation: similarity, normalization and assembly in one pass.

Scores and weights stay in registers. The rows of a tile's halo are read by several tiles, so maps
in planes, where each such row is a few bytes, are brought into the other layout first: they are the
small ones.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .flat import channels_innermost
from .launch import Constants, Device, Plan, plan_tiles, run, tiles_of
from .normalization import normalize
from .window import (
    UNSPECIALIZED,
    Sizes,
    advance,
    correlate,
    fit,
    gather,
    locate,
    rows_of,
    tile_windows,
)


@triton.jit
def affiliate(
    products,
    in_window,
    key_rows,
    inverse_temperature,
    eps,
    NORMALIZATION: tl.constexpr,
    BORDER: tl.constexpr,
):
    """Compute the scores of a tile, which of them take part, and what `normalize` makes of them.

    Args:
        products: (M, N), inner products of queries and keys.
        in_window: (M, N), whether the key lies in the query's window.
        key_rows: N `Rows` of keys.
        inverse_temperature: 1 / T, by which the inner products are multiplied.
        eps: As `normalize` has it.
        NORMALIZATION: Likewise.
        BORDER: With 'mask' keys outside the image do not take part.

    Returns:
        Scores (M, N), whether they take part, their weights, and the scales (M,) that have them
        again.
    """
    scores = products * inverse_temperature
    counted = in_window
    if BORDER == 'mask':
        counted &= key_rows.inside[None, :]
    weights, scale = normalize(scores, counted, eps, NORMALIZATION)
    return scores, counted, weights, scale


@triton.jit(do_not_specialize=UNSPECIALIZED)
def affiliation_fwd_kernel(
    query,
    key,
    value,
    out,
    embed,
    channels,
    cells_y,
    cells_x,
    high_y,
    high_x,
    tiles_y,
    tiles_x,
    share,
    splits,
    inverse_temperature,
    eps,
    tile,
    NORMALIZATION: tl.constexpr,
    BORDER: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[l'] = sum_p w[l', p] value[l + p], w = normalize(<query[l'], key[l + p]> / T).

    query (N, D, Hg, Wg), key (N, D, H, W), value (N, C, H, W) and out (N, C, Hg, Wg) are `Strided`,
    ``tile`` is the `Tile`; D is ``embed``, C ``channels``. One program owns ``share`` channels of a
    tile of cells of one image. The grid is (N * tiles_y * tiles_x * splits,).
    """
    image, tile_y, tile_x, split = locate(splits, tiles_y, tiles_x)
    image = image.to(tl.int64)
    query, key = advance(query, image, 0), advance(key, image, 0)
    value, out = advance(value, image, 0), advance(out, image, 0)

    sizes = Sizes(cells_y, cells_x, high_y, high_x)
    windows = tile_windows(tile_y, tile_x, sizes, tile, BORDER)
    pixels, cells = windows.pixels, windows.cells
    value_rows, out_rows = rows_of(value, cells), rows_of(out, pixels)
    start = split * share
    stop = tl.minimum(start + share, channels)
    key_rows = rows_of(key, cells)
    products = correlate(rows_of(query, pixels), key_rows, embed, BLOCK_D, PRECISION, ONE_D)
    _, _, weights, _ = affiliate(
        products, windows.inside, key_rows, inverse_temperature, eps, NORMALIZATION, BORDER
    )
    weights, scale = fit(weights, value.ptr.dtype.element_ty, SCALED)
    gather(weights, scale, value_rows, out_rows, start, stop, channels, BLOCK_C, PRECISION)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    eps: float,
) -> None:
    """Write the upsampled ``value``.

    Args:
        query: (N, D, Hg, Wg), float16, bfloat16 or float32, any strides.
        key: (N, D, H, W), likewise.
        value: (N, C, H, W), likewise.
        out: (N, C, Hg, Wg), written to.
        kernel_size: K.
        normalization: 'softmax', 'sigmoid', 'relu', 'softplus' or 'none'.
        temperature: T, by which the inner products are divided.
        border: 'zero', 'mask' or 'replicate'.
        eps: Added to the sum that the three in the middle divide by.
    """
    # Weights without a bound may leave the range of float16.
    scaled = normalization == 'none' and value.dtype == torch.float16
    key, value = channels_innermost(key), channels_innermost(value)
    embed, channels = key.shape[1], value.shape[1]

    def plan(constants: Constants, device: Device) -> Plan:
        tiles = tiles_of(tuning.FORWARD, query, value, kernel_size, channels)
        tiles = tiles._replace(embed=embed, channels_last=out.stride(1) == 1)
        return plan_tiles(affiliation_fwd_kernel, tiles, value.dtype, constants, device)

    run(
        affiliation_fwd_kernel,
        plan,
        (kernel_size,),
        value,
        dict(query=query, key=key, value=value, out=out),
        {},
        dict(
            channels=channels,
            embed=embed,
            inverse_temperature=1.0 / temperature,
            eps=eps,
        ),
        dict(NORMALIZATION=normalization, BORDER=border, SCALED=scaled),
    )
