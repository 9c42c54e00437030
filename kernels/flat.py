"""Maps whose pixels are numbered row by row, and their way from planes to channels innermost."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Constants, Device, Plan, plan_fixed, run
from .window import Rows, advance, load_rows, store_rows


@triton.jit
def flat_rows(tensor, image, index, inside, WIDE: tl.constexpr = True):
    """Find the `Rows` of pixels of an image of a `Strided` tensor, numbered row by row.

    Args:
        tensor: Its rows of pixels lie in memory without gaps: stride_h is W * stride_w.
        image: The number of the image, int64.
        index: (P,), numbers of the pixels.
        inside: (P,), whether there are such ones.
        WIDE: Whether an image has values that an int32 does not count.
    """
    tensor = advance(tensor, image, 0)
    dtype: tl.constexpr = tl.int64 if WIDE else tl.int32
    return Rows(tensor.ptr, index.to(dtype) * tensor.stride_w, inside, tensor.stride_c)


@triton.jit(do_not_specialize=('pixels', 'tiles'))
def relay_kernel(x, out, channels, pixels, tiles, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Copy x to out, both `Strided` (N, C, H, W).

    One program owns BLOCK_P pixels of an image. The grid is (N * tiles,).
    """
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64)
    index = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = index < pixels
    source, target = flat_rows(x, image, index, inside), flat_rows(out, image, index, inside)
    for c in range(0, channels, BLOCK_C):
        store_rows(target, c, channels, load_rows(source, c, channels, BLOCK_C), BLOCK_C)


def is_flat(x: Tensor) -> bool:
    """Return whether the rows of pixels of a map follow each other in memory."""
    return x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3)


def flat(x: Tensor | None) -> Tensor | None:
    """Return a map whose rows of pixels follow each other in memory: itself, if they do."""
    return x if x is None or is_flat(x) else x.clone(memory_format=torch.contiguous_format)


def is_wide(*maps: Tensor | None) -> bool:
    """Return whether an image of one of these maps has values that an int32 does not count."""
    return any(
        x is not None
        and sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True))
        >= 2**31
        for x in maps
    )


def channels_innermost(x: Tensor) -> Tensor:
    """Return a map with its channels innermost in memory: itself, if it has them there."""
    if x.stride(1) == 1 or x.shape[1] == 1:
        return x
    n, channels, height, width = x.shape
    out = torch.empty_like(x, memory_format=torch.channels_last)
    blocks = dict(BLOCK_P=64, BLOCK_C=64)
    tiles = -(-height * width // blocks['BLOCK_P'])

    def plan(constants: Constants, device: Device) -> Plan:
        return plan_fixed(relay_kernel, n * tiles, blocks, constants, device)

    run(
        relay_kernel,
        plan,
        (),
        x,
        dict(x=flat(x), out=out),
        {},
        dict(channels=channels, pixels=height * width, tiles=tiles),
        {},
    )
    return out
