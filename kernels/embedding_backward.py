"""The gradient of the embedding: of its map pixel by pixel, of its parameters by parts of the map.

Nothing but the statistics of the pixels is kept from the forward. The gradients of all parameters
follow from two sums over the pixels, dY^T X and that of dY, with X the standardized map and dY the
gradient of the embedding: each of some programs adds up its part of the pixels, and one launch more
adds the parts up in their order, so that two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .embedding import centred, flat_parents, fold, gate_of, load_affine, load_vector
from .embedding_plan import MAP, SUMS, UNSPECIALIZED, contiguous, parts_of, request_of, start
from .flat import flat, flat_rows, is_flat
from .launch import Constants, Device, Plan, device_of, plan_fixed, run
from .window import dot, first_child, load_rows, store_rows


@triton.jit
def normalized_gradient(
    grad_rows,
    weight_ptr,
    norm_weight_ptr,
    start,
    channels,
    embed,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the gradient of the standardized map, (P, BLOCK_C) channels from ``start``.

    Args:
        grad_rows: P `Rows` of the gradient of the embedding.
        weight_ptr: (D, C), or None.
        norm_weight_ptr: (C,), or None.
        start: The first channel.
        channels: Channels that there are.
        embed: D.
        DTYPE: Of the products.
        PRECISION: As `dot` has it.
        BLOCK_P: P.
        BLOCK_C: Channels of a block.
        BLOCK_D: Likewise, of the embedding.
    """
    if weight_ptr is None:
        grad = load_rows(grad_rows, start, channels, BLOCK_C).to(tl.float32)
        if norm_weight_ptr is not None:
            grad *= load_vector(norm_weight_ptr, start, channels, BLOCK_C)[None, :]
    else:
        grad = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for d in range(0, embed, BLOCK_D):
            w, _, _ = fold(
                weight_ptr, None, norm_weight_ptr, None, d, embed, start, channels, DTYPE,
                BLOCK_D, BLOCK_C,
            )  # fmt: skip
            grad = dot(load_rows(grad_rows, d, embed, BLOCK_D), w, grad, PRECISION)
    return grad


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_bwd_kernel(
    grad,
    x,
    statistics_ptr,
    weight_ptr,
    norm_weight_ptr,
    gate,
    grad_x,
    images,
    channels,
    embed,
    high_y,
    high_x,
    cells_y,
    cells_x,
    tiles,
    ONE_BLOCK: tl.constexpr,
    ONE_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradient of the map.

    With the gate g, dX = gamma (grad W) and the standardized map X, the gradient of a pixel's
    channels is g r (dX - mean(dX) - X mean(dX X)), of reciprocal deviation r; without a LayerNorm
    g dX. grad (N, D, H, W), x and grad_x (N, C, H, W), gate (N, 1, h, w) are `Strided`; gate and
    parameters may be None, statistics is without a LayerNorm. One program owns some of the
    N * tiles blocks of BLOCK_P pixels, every so many-th.
    """
    dtype: tl.constexpr = x.ptr.dtype.element_ty
    PROJECT: tl.constexpr = weight_ptr is not None
    NORMALIZE: tl.constexpr = statistics_ptr is not None
    RESIDENT: tl.constexpr = PROJECT and ONE_BLOCK and ONE_D
    if RESIDENT:
        w, _, _ = fold(
            weight_ptr, None, norm_weight_ptr, None, 0, embed, 0, channels, dtype, BLOCK_D, BLOCK_C
        )
    pixels = high_y * high_x
    half = images.to(tl.int64) * pixels
    for number in range(tl.program_id(0), images * tiles, tl.num_programs(0)):
        image = (number // tiles).to(tl.int64)
        index = number % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = index < pixels
        rows, grad_rows = (
            flat_rows(x, image, index, inside, WIDE),
            flat_rows(grad, image, index, inside, WIDE),
        )
        target = flat_rows(grad_x, image, index, inside, WIDE)
        factor = tl.full((BLOCK_P,), 1.0, tl.float32)
        if gate is not None:
            cells = flat_parents(index, high_y, high_x, cells_y, cells_x)
            factor = gate_of(gate, image, cells, inside)
        first = tl.zeros((BLOCK_P,), tl.float32)
        second = tl.zeros((BLOCK_P,), tl.float32)
        if NORMALIZE:
            pixel = image * pixels + index
            mean = tl.load(statistics_ptr + pixel, mask=inside, other=0.0)
            reciprocal = tl.load(statistics_ptr + half + pixel, mask=inside, other=0.0)
            factor *= reciprocal
        if ONE_BLOCK:
            if NORMALIZE:
                block = load_rows(rows, 0, channels, BLOCK_C)
            if RESIDENT:
                x_grad = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
                x_grad = dot(load_rows(grad_rows, 0, embed, BLOCK_D), w, x_grad, PRECISION)
            else:
                x_grad = normalized_gradient(
                    grad_rows, weight_ptr, norm_weight_ptr, 0, channels, embed, dtype, PRECISION,
                    BLOCK_P, BLOCK_C, BLOCK_D,
                )  # fmt: skip
            if NORMALIZE:
                block, rest = centred(block, mean, 0, channels, BLOCK_C)
                if dtype == tl.float32:
                    wide = block - (rest / channels)[:, None]
                else:
                    wide = block.to(tl.float32) - mean[:, None]
                wide *= reciprocal[:, None]
                first, second = tl.sum(x_grad, 1), tl.sum(x_grad * wide, 1)
                x_grad -= (first / channels)[:, None] + wide * (second / channels)[:, None]
            store_rows(target, 0, channels, x_grad * factor[:, None], BLOCK_C)
        else:
            if NORMALIZE:
                for c in range(0, channels, BLOCK_C):
                    x_grad = normalized_gradient(
                        grad_rows, weight_ptr, norm_weight_ptr, c, channels, embed, dtype,
                        PRECISION, BLOCK_P, BLOCK_C, BLOCK_D,
                    )  # fmt: skip
                    block = load_rows(rows, c, channels, BLOCK_C).to(tl.float32)
                    block = (block - mean[:, None]) * reciprocal[:, None]
                    first += tl.sum(x_grad, 1)
                    second += tl.sum(x_grad * block, 1)
            for c in range(0, channels, BLOCK_C):
                x_grad = normalized_gradient(
                    grad_rows, weight_ptr, norm_weight_ptr, c, channels, embed, dtype, PRECISION,
                    BLOCK_P, BLOCK_C, BLOCK_D,
                )  # fmt: skip
                if NORMALIZE:
                    block = load_rows(rows, c, channels, BLOCK_C).to(tl.float32)
                    block = (block - mean[:, None]) * reciprocal[:, None]
                    x_grad -= (first / channels)[:, None] + block * (second / channels)[:, None]
                store_rows(target, c, channels, x_grad * factor[:, None], BLOCK_C)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_sums_kernel(
    grad,
    x,
    statistics_ptr,
    weight_ptr,
    gate,
    sums_ptr,
    grad_sums_ptr,
    images,
    channels,
    embed,
    high_y,
    high_x,
    cells_y,
    cells_x,
    tiles,
    parts,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum X^T dY and dY over a part of the pixels, X standardized and dY = g grad.

    grad (N, D, H, W), x (N, C, H, W) and gate (N, 1, h, w) are `Strided`. sums (parts, C, D) and
    grad_sums (parts, D), contiguous, receive the sums; without a weight, sums (parts, C) those of
    the products channel by channel. One program owns BLOCK_C x BLOCK_D sums of a part, every
    ``parts``-th block of pixels. The grid is (parts * blocks of D * blocks of C,), without a weight
    (parts * blocks of C,).
    """
    program = tl.program_id(0)
    PROJECT: tl.constexpr = weight_ptr is not None
    dtype: tl.constexpr = x.ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    c, part = program % blocks * BLOCK_C, program // blocks
    if PROJECT:
        d_blocks = tl.cdiv(embed, BLOCK_D)
        d, part = part % d_blocks * BLOCK_D, part // d_blocks
        sums = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
        shift = tl.zeros((BLOCK_D,), tl.float32)
        grad_sums = tl.zeros((BLOCK_D,), tl.float32)
    else:
        sums = tl.zeros((BLOCK_C,), tl.float32)
        grad_sums = tl.zeros((BLOCK_C,), tl.float32)
    pixels = high_y * high_x
    half = images.to(tl.int64) * pixels
    for tile in range(part, images * tiles, parts):
        image = (tile // tiles).to(tl.int64)
        index = tile % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = index < pixels
        block = load_rows(flat_rows(x, image, index, inside, WIDE), c, channels, BLOCK_C)
        grad_rows = flat_rows(grad, image, index, inside, WIDE)
        mean = tl.zeros((BLOCK_P,), tl.float32)
        factor = tl.full((BLOCK_P,), 1.0, tl.float32)
        if gate is not None:
            cells = flat_parents(index, high_y, high_x, cells_y, cells_x)
            factor = gate_of(gate, image, cells, inside)
        gates = factor
        if statistics_ptr is not None:
            pixel = image * pixels + index
            mean = tl.load(statistics_ptr + pixel, mask=inside, other=0.0)
            factor *= tl.load(statistics_ptr + half + pixel, mask=inside, other=0.0)
        if PROJECT:
            rows = load_rows(grad_rows, d, embed, BLOCK_D)
            grad_sums += tl.sum(rows.to(tl.float32) * gates[:, None], 0)
            # Factors are relative to the largest, so that nothing leaves the dtype's range.
            top = tl.max(factor, 0)
            top = tl.where(top > 0.0, top, 1.0)
            scaled = (rows * (factor / top)[:, None]).to(dtype)
            nothing = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
            block, _ = centred(block, mean, c, channels, BLOCK_C)
            sums += top * dot(tl.trans(block), scaled, nothing, PRECISION)
            if dtype != tl.float32:
                shift += top * tl.sum(scaled.to(tl.float32) * mean[:, None], 0)
        else:
            rows = load_rows(grad_rows, c, channels, BLOCK_C).to(tl.float32)
            grad_sums += tl.sum(rows * gates[:, None], 0)
            block = (block.to(tl.float32) - mean[:, None]) * factor[:, None]
            sums += tl.sum(rows * block, 0)
    channel = c + tl.arange(0, BLOCK_C)
    there = channel < channels
    if PROJECT:
        column = d + tl.arange(0, BLOCK_D)
        place = (part * channels + channel)[:, None] * embed + column[None, :]
        mask = there[:, None] & (column < embed)[None, :]
        tl.store(sums_ptr + place, sums - shift[None, :], mask=mask)
        place = grad_sums_ptr + part * embed + column
        tl.store(place, grad_sums, mask=column < tl.where(c == 0, embed, 0))
    else:
        tl.store(sums_ptr + part * channels + channel, sums, mask=there)
        tl.store(grad_sums_ptr + part * channels + channel, grad_sums, mask=there)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_parameters_kernel(
    sums_ptr,
    grad_sums_ptr,
    weight_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    grad_norm_weight_ptr,
    grad_norm_bias_ptr,
    channels,
    embed,
    parts,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add up the parts of M = X^T dY and m = sum of dY, and turn them into gradients.

    With LN(x) = gamma X + beta: dW^T = gamma M + beta m^T, db = m, dgamma = sum_d W^T M and
    dbeta = sum_d W^T m; without a weight dgamma is M and dbeta m. Gradients that are None are left
    out. One program owns BLOCK_C channels. The grid is (blocks of C,).
    """
    c = tl.program_id(0) * BLOCK_C
    channel = c + tl.arange(0, BLOCK_C)
    there = channel < channels
    grad_norm_weight = tl.zeros((BLOCK_C,), tl.float32)
    grad_norm_bias = tl.zeros((BLOCK_C,), tl.float32)
    part = tl.arange(0, BLOCK_PARTS)
    if weight_ptr is None:
        for p in range(0, parts, BLOCK_PARTS):
            place = (p + part)[:, None] * channels + channel[None, :]
            mask = (p + part < parts)[:, None] & there[None, :]
            grad_norm_weight += tl.sum(tl.load(sums_ptr + place, mask=mask, other=0.0), 0)
            grad_norm_bias += tl.sum(tl.load(grad_sums_ptr + place, mask=mask, other=0.0), 0)
    else:
        for d in range(0, embed, BLOCK_D):
            column = d + tl.arange(0, BLOCK_D)
            sums = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
            grad_sums = tl.zeros((BLOCK_D,), tl.float32)
            for p in range(0, parts, BLOCK_PARTS):
                row = p + part
                mask = (row < parts)[:, None] & (column < embed)[None, :]
                place = row[:, None] * embed + column[None, :]
                grad_sums += tl.sum(tl.load(grad_sums_ptr + place, mask=mask, other=0.0), 0)
                place = row[:, None] * channels + channel[None, :]
                place = place[:, :, None] * embed + column[None, None, :]
                mask = mask[:, None, :] & there[None, :, None]
                sums += tl.sum(tl.load(sums_ptr + place, mask=mask, other=0.0), 0)
            place = column[None, :] * channels + channel[:, None]
            mask = (column < embed)[None, :] & there[:, None]
            w = tl.load(weight_ptr + place, mask=mask, other=0.0).to(tl.float32)
            grad_norm_weight += tl.sum(w * sums, 1)
            grad_norm_bias += tl.sum(w * grad_sums[None, :], 1)
            if grad_weight_ptr is not None:
                gamma, beta = load_affine(norm_weight_ptr, norm_bias_ptr, c, channels, BLOCK_C)
                values = sums * gamma[:, None] + beta[:, None] * grad_sums[None, :]
                values = values.to(grad_weight_ptr.dtype.element_ty)
                tl.store(grad_weight_ptr + place, values, mask=mask)
            if grad_bias_ptr is not None:
                values = grad_sums.to(grad_bias_ptr.dtype.element_ty)
                place = grad_bias_ptr + column
                tl.store(place, values, mask=column < tl.where(c == 0, embed, 0))
    if grad_norm_weight_ptr is not None:
        values = grad_norm_weight.to(grad_norm_weight_ptr.dtype.element_ty)
        tl.store(grad_norm_weight_ptr + channel, values, mask=there)
    if grad_norm_bias_ptr is not None:
        values = grad_norm_bias.to(grad_norm_bias_ptr.dtype.element_ty)
        tl.store(grad_norm_bias_ptr + channel, values, mask=there)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_cells_kernel(
    grad,
    out,
    gate,
    addend,
    grad_gate,
    grad_addend,
    embed,
    high_y,
    high_x,
    cells_y,
    cells_x,
    tiles,
    slots_y,
    slots_x,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradients of gate and addend, sums over the pixels of each cell.

    With G the sum of grad over a cell's pixels: of the addend (1 - g) G, without a gate G; of the
    gate's logit (1 - g) (sum <grad, out> - <G, s>), for out - s is g times what differs from s.
    grad and out (N, D, H, W) and the others, (N, *, h, w), are `Strided`. One program owns BLOCK_P
    cells of an image. The grid is (N * tiles,).
    """
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64)
    index = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = index < cells_y * cells_x
    row, column = index // cells_x, index % cells_x
    top, bottom = first_child(row, cells_y, high_y), first_child(row + 1, cells_y, high_y)
    left, right = first_child(column, cells_x, high_x), first_child(column + 1, cells_x, high_x)
    rest = tl.full((BLOCK_P,), 1.0, tl.float32)
    if gate is not None:
        rest -= gate_of(gate, image, index, inside)
    total = tl.zeros((BLOCK_P,), tl.float32)
    for d in range(0, embed, BLOCK_D):
        sums = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
        if grad_gate is not None:
            more = load_rows(flat_rows(addend, image, index, inside), d, embed, BLOCK_D)
            more = more.to(tl.float32)
        for slot in range(slots_y * slots_x):
            y, x = top + slot // slots_x, left + slot % slots_x
            there = inside & (y < bottom) & (x < right)
            pixel = y * high_x + x
            block = load_rows(flat_rows(grad, image, pixel, there), d, embed, BLOCK_D)
            block = block.to(tl.float32)
            sums += block
            if grad_gate is not None:
                values = load_rows(flat_rows(out, image, pixel, there), d, embed, BLOCK_D)
                total += tl.sum(block * (values.to(tl.float32) - more), 1)
        if grad_addend is not None:
            target = flat_rows(grad_addend, image, index, inside)
            store_rows(target, d, embed, sums * rest[:, None], BLOCK_D)
    if grad_gate is not None:
        target = flat_rows(grad_gate, image, index, inside)
        values = (rest * total).to(target.ptr.dtype.element_ty)
        tl.store(target.ptr + target.offsets, values, mask=inside)


def backward(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gate: Tensor | None,
    addend: Tensor | None,
    out: Tensor | None,
    grads: dict[str, Tensor],
) -> None:
    """Write the gradients that are asked for; the same bits at every run of one choice of blocks.

    Args:
        grad: Gradient of the embedding (N, D, H, W), any strides.
        x: As the forward had it.
        statistics: What the forward wrote, or None without a LayerNorm.
        weight: As the forward had it.
        bias: Likewise.
        norm_weight: Likewise.
        norm_bias: Likewise.
        gate: Likewise.
        addend: Likewise.
        out: What the forward wrote; needed for the gradient of the gate.
        grads: Those that are written, by the names of the inputs above; of parameters contiguous.
    """
    x, grad, gate, addend = flat(x), flat(grad), flat(gate), flat(addend)
    # A gradient lies in memory as its input, which need not be as the kernels write.
    others = {name: y for name, y in grads.items() if y.dim() == 4 and not is_flat(y)}
    grads = grads | {
        name: torch.empty_like(y, memory_format=torch.contiguous_format)
        for name, y in others.items()
    }
    weight = contiguous(weight)
    norm_weight, norm_bias = contiguous(norm_weight), contiguous(norm_bias)
    (n, c, height, width), embed = x.shape, grad.shape[1]
    if 'x' in grads:
        start(
            embedding_bwd_kernel,
            MAP,
            x,
            embed,
            addend,
            tensors=dict(grad=grad, x=x, gate=gate, grad_x=grads['x']),
            pointers=dict(
                statistics_ptr=statistics, weight_ptr=weight, norm_weight_ptr=norm_weight
            ),
        )
    parameters = {'weight', 'bias', 'norm_weight', 'norm_bias'} & grads.keys()
    if parameters:
        parts = parts_of(request_of(SUMS, x, embed, weight is not None), device_of(x))
        shape = (parts, c) if weight is None else (parts, c, embed)
        sums = torch.empty(shape, dtype=torch.float32, device=x.device)
        grad_sums = torch.empty((parts, shape[-1]), dtype=torch.float32, device=x.device)
        start(
            embedding_sums_kernel,
            SUMS,
            x,
            embed,
            addend,
            tensors=dict(grad=grad, x=x, gate=gate),
            pointers=dict(
                statistics_ptr=statistics,
                weight_ptr=weight,
                sums_ptr=sums,
                grad_sums_ptr=grad_sums,
            ),
        )
        blocks = dict(BLOCK_PARTS=4, BLOCK_C=8, BLOCK_D=min(64, triton.next_power_of_2(embed)))

        def plan(constants: Constants, device: Device) -> Plan:
            programs = -(-c // blocks['BLOCK_C'])
            return plan_fixed(embedding_parameters_kernel, programs, blocks, constants, device)

        run(
            embedding_parameters_kernel,
            plan,
            (),
            x,
            {},
            dict(
                sums_ptr=sums,
                grad_sums_ptr=grad_sums,
                weight_ptr=weight,
                norm_weight_ptr=norm_weight,
                norm_bias_ptr=norm_bias,
                grad_weight_ptr=grads.get('weight'),
                grad_bias_ptr=grads.get('bias'),
                grad_norm_weight_ptr=grads.get('norm_weight'),
                grad_norm_bias_ptr=grads.get('norm_bias'),
            ),
            dict(channels=c, embed=embed, parts=parts),
            {},
        )
    if addend is not None and ('gate' in grads or 'addend' in grads):
        cells_y, cells_x = addend.shape[2:]
        cells = dict(BLOCK_P=32, BLOCK_D=min(64, triton.next_power_of_2(embed)))
        tiles = -(-cells_y * cells_x // cells['BLOCK_P'])

        def plan_cells(constants: Constants, device: Device) -> Plan:
            return plan_fixed(embedding_cells_kernel, n * tiles, cells, constants, device)

        run(
            embedding_cells_kernel,
            plan_cells,
            (),
            x,
            dict(
                grad=grad,
                out=flat(out),
                gate=gate,
                addend=addend,
                grad_gate=grads.get('gate'),
                grad_addend=grads.get('addend'),
            ),
            {},
            dict(
                embed=embed,
                high_y=height,
                high_x=width,
                cells_y=cells_y,
                cells_x=cells_x,
                tiles=tiles,
                slots_y=-(-height // cells_y),
                slots_x=-(-width // cells_x),
            ),
            {},
        )
    for name, y in others.items():
        y.copy_(grads[name])
