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

from .embedding import (
    UNSPECIALIZED,
    contiguous,
    flat_parents,
    gate_of,
    load_affine,
    load_matrix,
    load_vector,
    parts_of,
    request_of,
    standardize,
    start,
)
from .flat import flat, flat_rows
from .launch import Fixed, device_of, plan_fixed, run
from .window import dot, first_child, load_rows, store_rows


@triton.jit
def map_gradient(
    rows,
    grad_rows,
    grad_block,
    weight_ptr,
    w,
    mean,
    reciprocal,
    start,
    channels,
    embed,
    PRECISION: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    ONE_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute standardized channels (P, BLOCK_C) of a map, and the gradient of what is projected.

    Args:
        rows: P `Rows` of the map.
        grad_rows: Those of the gradient of the embedding.
        grad_block: (P, BLOCK_D), the block of these with ONE_D.
        weight_ptr: (D, C), or None.
        w: The weight with ONE_BLOCK and ONE_D.
        mean: (P,), of the pixels.
        reciprocal: (P,), their reciprocal deviations.
        start: The first channel.
        channels: Channels that there are.
        embed: D.
        PRECISION: As `dot` has it.
        ONE_BLOCK: Whether BLOCK_C are all channels.
        ONE_D: Whether BLOCK_D are all of the embedding's.
        BLOCK_C: Channels of a block.
        BLOCK_D: Likewise, of the embedding.
    """
    x = standardize(load_rows(rows, start, channels, BLOCK_C), mean, reciprocal)
    dtype: tl.constexpr = rows.ptr.dtype.element_ty
    if weight_ptr is None:
        grad = load_rows(grad_rows, start, channels, BLOCK_C).to(tl.float32)
    else:
        grad = tl.zeros((x.shape[0], BLOCK_C), tl.float32)
        for d in range(0, 1 if ONE_D else embed, BLOCK_D):
            if ONE_D:
                left = grad_block
            else:
                left = load_rows(grad_rows, d, embed, BLOCK_D)
            if ONE_BLOCK and ONE_D:
                right = w
            else:
                right = load_matrix(weight_ptr, d, embed, start, channels, BLOCK_D, BLOCK_C)
            grad = dot(left, right.to(dtype), grad, PRECISION)
    return x, grad


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_bwd_kernel(
    grad,
    x,
    statistics_ptr,
    weight_ptr,
    bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    gate,
    grad_x,
    inner_ptr,
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
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradient of the map, and the inner products that the gate's is made of.

    With dY = g grad, dA = dY W and dX = gamma dA, the gradient of a pixel's channels is
    r (dX - mean(dX) - X mean(dX X)), of reciprocal deviation r; without a LayerNorm it is dA.
    inner (N, H, W), contiguous, receives <grad, LN(x) W^T + b>. grad (N, D, H, W), x and grad_x
    (N, C, H, W), gate (N, 1, h, w) are `Strided`; gate, grad_x, inner and parameters may be None,
    statistics is without a LayerNorm. One program owns some of the N * tiles blocks of BLOCK_P
    pixels, every so many-th.
    """
    dtype: tl.constexpr = x.ptr.dtype.element_ty
    PROJECT: tl.constexpr = weight_ptr is not None
    NORMALIZE: tl.constexpr = statistics_ptr is not None
    if ONE_BLOCK:
        gamma, beta = load_affine(norm_weight_ptr, norm_bias_ptr, 0, channels, BLOCK_C)
    w = tl.zeros((1, 1), dtype)
    if PROJECT and ONE_BLOCK and ONE_D:
        w = load_matrix(weight_ptr, 0, embed, 0, channels, BLOCK_D, BLOCK_C).to(dtype)
    pixels = high_y * high_x
    half = images.to(tl.int64) * pixels
    for number in range(tl.program_id(0), images * tiles, tl.num_programs(0)):
        image = (number // tiles).to(tl.int64)
        index = number % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = index < pixels
        rows, grad_rows = flat_rows(x, image, index, inside), flat_rows(grad, image, index, inside)
        pixel = image * pixels + index
        mean = tl.zeros((BLOCK_P,), tl.float32)
        reciprocal = tl.full((BLOCK_P,), 1.0, tl.float32)
        if NORMALIZE:
            mean = tl.load(statistics_ptr + pixel, mask=inside, other=0.0)
            reciprocal = tl.load(statistics_ptr + half + pixel, mask=inside, other=0.0)
        grad_block = tl.zeros((1, 1), dtype)
        if PROJECT and ONE_D:
            grad_block = load_rows(grad_rows, 0, embed, BLOCK_D)
        first = tl.zeros((BLOCK_P,), tl.float32)
        second = tl.zeros((BLOCK_P,), tl.float32)
        inner = tl.zeros((BLOCK_P,), tl.float32)
        if ONE_BLOCK:
            x_block, x_grad = map_gradient(
                rows, grad_rows, grad_block, weight_ptr, w, mean, reciprocal, 0, channels, embed,
                PRECISION, ONE_BLOCK, ONE_D, BLOCK_C, BLOCK_D,
            )  # fmt: skip
            if inner_ptr is not None:
                inner = projected(x_block, x_grad, gamma, beta, 0, channels, BLOCK_C)
            x_grad *= gamma[None, :]
            first, second = tl.sum(x_grad, 1), tl.sum(x_grad * x_block, 1)
        elif NORMALIZE or inner_ptr is not None:
            for c in range(0, channels, BLOCK_C):
                gamma, beta = load_affine(norm_weight_ptr, norm_bias_ptr, c, channels, BLOCK_C)
                x_block, x_grad = map_gradient(
                    rows, grad_rows, grad_block, weight_ptr, w, mean, reciprocal, c, channels,
                    embed, PRECISION, ONE_BLOCK, ONE_D, BLOCK_C, BLOCK_D,
                )  # fmt: skip
                if inner_ptr is not None:
                    inner += projected(x_block, x_grad, gamma, beta, c, channels, BLOCK_C)
                x_grad *= gamma[None, :]
                first += tl.sum(x_grad, 1)
                second += tl.sum(x_grad * x_block, 1)
        if inner_ptr is not None:
            if bias_ptr is not None:
                for d in range(0, embed, BLOCK_D):
                    block = load_rows(grad_rows, d, embed, BLOCK_D).to(tl.float32)
                    inner += tl.sum(block * load_vector(bias_ptr, d, embed, BLOCK_D)[None, :], 1)
            tl.store(inner_ptr + pixel, inner, mask=inside)
        if grad_x is not None:
            g = tl.full((BLOCK_P,), 1.0, tl.float32)
            if gate is not None:
                cells = flat_parents(index, high_y, high_x, cells_y, cells_x)
                g = gate_of(gate, image, cells, inside)
            target = flat_rows(grad_x, image, index, inside)
            first, second, g = first / channels, second / channels, g * reciprocal
            if ONE_BLOCK:
                if NORMALIZE:
                    x_grad = x_grad - first[:, None] - x_block * second[:, None]
                store_rows(target, 0, channels, x_grad * g[:, None], BLOCK_C)
            else:
                for c in range(0, channels, BLOCK_C):
                    gamma, _ = load_affine(norm_weight_ptr, norm_bias_ptr, c, channels, BLOCK_C)
                    x_block, x_grad = map_gradient(
                        rows, grad_rows, grad_block, weight_ptr, w, mean, reciprocal, c, channels,
                        embed, PRECISION, ONE_BLOCK, ONE_D, BLOCK_C, BLOCK_D,
                    )  # fmt: skip
                    x_grad *= gamma[None, :]
                    if NORMALIZE:
                        x_grad = x_grad - first[:, None] - x_block * second[:, None]
                    store_rows(target, c, channels, x_grad * g[:, None], BLOCK_C)


@triton.jit
def projected(x, grad, gamma, beta, start, channels, BLOCK_C: tl.constexpr):
    """Multiply what is projected with its gradient and sum over BLOCK_C channels: (P,)."""
    there = (start + tl.arange(0, BLOCK_C) < channels)[None, :]
    return tl.sum(tl.where(there, (x * gamma[None, :] + beta[None, :]) * grad, 0.0), 1)


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
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum dY^T X and dY over a part of the pixels, X standardized.

    grad (N, D, H, W), x (N, C, H, W) and gate (N, 1, h, w) are `Strided`. sums (parts, D, C) and
    grad_sums (parts, D), contiguous, receive the sums; without a weight, sums (parts, C) those of
    the products channel by channel. One program owns BLOCK_D x BLOCK_C sums of a part, every
    ``parts``-th block of pixels. The grid is (parts * blocks of D * blocks of C,), without a weight
    (parts * blocks of C,).
    """
    program = tl.program_id(0)
    PROJECTED: tl.constexpr = weight_ptr is not None
    dtype: tl.constexpr = x.ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    if PROJECTED:
        c, rest = program % blocks * BLOCK_C, program // blocks
        d_blocks = tl.cdiv(embed, BLOCK_D)
        d, part = rest % d_blocks * BLOCK_D, rest // d_blocks
        sums = tl.zeros((BLOCK_D, BLOCK_C), tl.float32)
        grad_sums = tl.zeros((BLOCK_D,), tl.float32)
    else:
        c, part = program % blocks * BLOCK_C, program // blocks
        d = c
        sums = tl.zeros((BLOCK_C,), tl.float32)
        grad_sums = tl.zeros((BLOCK_C,), tl.float32)
    pixels = high_y * high_x
    half = images.to(tl.int64) * pixels
    for tile in range(part, images * tiles, parts):
        image = (tile // tiles).to(tl.int64)
        index = tile % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = index < pixels
        mean = tl.zeros((BLOCK_P,), tl.float32)
        reciprocal = tl.full((BLOCK_P,), 1.0, tl.float32)
        if statistics_ptr is not None:
            pixel = image * pixels + index
            mean = tl.load(statistics_ptr + pixel, mask=inside, other=0.0)
            reciprocal = tl.load(statistics_ptr + half + pixel, mask=inside, other=0.0)
        block = load_rows(flat_rows(x, image, index, inside), c, channels, BLOCK_C)
        block = standardize(block, mean, reciprocal)
        grad_rows = flat_rows(grad, image, index, inside)
        if PROJECTED:
            grad_block = load_rows(grad_rows, d, embed, BLOCK_D)
        else:
            grad_block = load_rows(grad_rows, c, channels, BLOCK_C)
        wide = grad_block.to(tl.float32)
        if gate is not None:
            cells = flat_parents(index, high_y, high_x, cells_y, cells_x)
            g = gate_of(gate, image, cells, inside)
            block *= g[:, None]
            grad_sums += tl.sum(wide * g[:, None], 0)
        else:
            grad_sums += tl.sum(wide, 0)
        if PROJECTED:
            sums = dot(tl.trans(grad_block), block.to(dtype), sums, PRECISION)
        else:
            sums += tl.sum(wide * block, 0)
    channel = c + tl.arange(0, BLOCK_C)
    there = channel < channels
    if PROJECTED:
        row = d + tl.arange(0, BLOCK_D)
        place = (part * embed + row)[:, None] * channels + channel[None, :]
        tl.store(sums_ptr + place, sums, mask=(row < embed)[:, None] & there[None, :])
        tl.store(
            grad_sums_ptr + part * embed + row, grad_sums, mask=row < tl.where(c == 0, embed, 0)
        )
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
    """Add up the parts of M = dY^T X and m = sum of dY, and turn them into gradients.

    With LN(x) = gamma X + beta: dW = gamma M + m beta^T, db = m, dgamma = sum_d W M and
    dbeta = sum_d W m; without a weight dgamma is M and dbeta m. Gradients that are None are left
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
            row = d + tl.arange(0, BLOCK_D)
            sums = tl.zeros((BLOCK_D, BLOCK_C), tl.float32)
            grad_sums = tl.zeros((BLOCK_D,), tl.float32)
            for p in range(0, parts, BLOCK_PARTS):
                place = (p + part)[:, None] * embed + row[None, :]
                mask = (p + part < parts)[:, None] & (row < embed)[None, :]
                grad_sums += tl.sum(tl.load(grad_sums_ptr + place, mask=mask, other=0.0), 0)
                place = place[:, :, None] * channels + channel[None, None, :]
                mask = mask[:, :, None] & there[None, None, :]
                sums += tl.sum(tl.load(sums_ptr + place, mask=mask, other=0.0), 0)
            w = load_matrix(weight_ptr, d, embed, c, channels, BLOCK_D, BLOCK_C).to(tl.float32)
            grad_norm_weight += tl.sum(w * sums, 0)
            grad_norm_bias += tl.sum(w * grad_sums[:, None], 0)
            if grad_weight_ptr is not None:
                values = sums
                if norm_weight_ptr is not None:
                    values *= load_vector(norm_weight_ptr, c, channels, BLOCK_C)[None, :]
                if norm_bias_ptr is not None:
                    beta = load_vector(norm_bias_ptr, c, channels, BLOCK_C)
                    values += grad_sums[:, None] * beta[None, :]
                place = row[:, None] * channels + channel[None, :]
                values = values.to(grad_weight_ptr.dtype.element_ty)
                mask = (row < embed)[:, None] & there[None, :]
                tl.store(grad_weight_ptr + place, values, mask=mask)
            if grad_bias_ptr is not None:
                values = grad_sums.to(grad_bias_ptr.dtype.element_ty)
                tl.store(grad_bias_ptr + row, values, mask=row < tl.where(c == 0, embed, 0))
    if grad_norm_weight_ptr is not None:
        values = grad_norm_weight.to(grad_norm_weight_ptr.dtype.element_ty)
        tl.store(grad_norm_weight_ptr + channel, values, mask=there)
    if grad_norm_bias_ptr is not None:
        values = grad_norm_bias.to(grad_norm_bias_ptr.dtype.element_ty)
        tl.store(grad_norm_bias_ptr + channel, values, mask=there)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_cells_kernel(
    grad,
    inner_ptr,
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

    With G the sum of grad over a cell's pixels and t that of inner: of the addend (1 - g) G, without
    a gate G; of the gate's logit g (1 - g) (t - <G, s>). grad (N, D, H, W) and the others, (N, *, h,
    w), are `Strided`, inner (N, H, W) is contiguous. One program owns BLOCK_P cells of an image. The
    grid is (N * tiles,).
    """
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64)
    index = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = index < cells_y * cells_x
    row, column = index // cells_x, index % cells_x
    top, bottom = first_child(row, cells_y, high_y), first_child(row + 1, cells_y, high_y)
    left, right = first_child(column, cells_x, high_x), first_child(column + 1, cells_x, high_x)
    g = tl.zeros((BLOCK_P,), tl.float32)
    total = tl.zeros((BLOCK_P,), tl.float32)
    if gate is not None:
        g = gate_of(gate, image, index, inside)
    for d in range(0, embed, BLOCK_D):
        sums = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
        for slot in range(slots_y * slots_x):
            y, x = top + slot // slots_x, left + slot % slots_x
            there = inside & (y < bottom) & (x < right)
            pixel = y * high_x + x
            rows = flat_rows(grad, image, pixel, there)
            sums += load_rows(rows, d, embed, BLOCK_D).to(tl.float32)
            if grad_gate is not None:
                place = inner_ptr + image * (high_y * high_x) + pixel
                total += tl.load(place, mask=there & (d == tl.zeros_like(index)), other=0.0)
        if grad_gate is not None:
            more = load_rows(flat_rows(addend, image, index, inside), d, embed, BLOCK_D)
            total -= tl.sum(sums * more.to(tl.float32), 1)
        if grad_addend is not None:
            target = flat_rows(grad_addend, image, index, inside)
            store_rows(target, d, embed, sums * (1.0 - g)[:, None], BLOCK_D)
    if grad_gate is not None:
        target = flat_rows(grad_gate, image, index, inside)
        values = (g * (1.0 - g) * total).to(target.ptr.dtype.element_ty)
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
        grads: Those that are written, by the names of the inputs above; of parameters contiguous.
    """
    x, grad, gate, addend = flat(x), flat(grad), flat(gate), flat(addend)
    weight, bias = contiguous(weight), contiguous(bias)
    norm_weight, norm_bias = contiguous(norm_weight), contiguous(norm_bias)
    (n, c, height, width), embed = x.shape, grad.shape[1]
    inner = None
    if 'gate' in grads:
        inner = torch.empty((n, height, width), dtype=torch.float32, device=x.device)
    if 'x' in grads or inner is not None:
        start(
            embedding_bwd_kernel,
            x,
            embed,
            addend,
            tensors=dict(grad=grad, x=x, gate=gate, grad_x=grads.get('x')),
            pointers=dict(
                statistics_ptr=statistics,
                weight_ptr=weight,
                bias_ptr=bias,
                norm_weight_ptr=norm_weight,
                norm_bias_ptr=norm_bias,
                inner_ptr=inner,
            ),
            constants={},
        )
    parameters = {'weight', 'bias', 'norm_weight', 'norm_bias'} & grads.keys()
    if parameters:
        parts = parts_of(request_of(x, embed, weight is not None), device_of(x))
        shape = (parts, c) if weight is None else (parts, embed, c)
        sums = torch.empty(shape, dtype=torch.float32, device=x.device)
        grad_sums = torch.empty(shape[:2], dtype=torch.float32, device=x.device)
        start(
            embedding_sums_kernel,
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
            constants={},
        )
        blocks = dict(BLOCK_PARTS=8, BLOCK_C=8, BLOCK_D=min(64, triton.next_power_of_2(embed)))
        run(
            embedding_parameters_kernel,
            plan_fixed,
            Fixed(-(-c // blocks['BLOCK_C']), tuple(blocks.items())),
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
        blocks = dict(BLOCK_P=32, BLOCK_D=min(64, triton.next_power_of_2(embed)))
        tiles = -(-cells_y * cells_x // blocks['BLOCK_P'])
        run(
            embedding_cells_kernel,
            plan_fixed,
            Fixed(n * tiles, tuple(blocks.items())),
            x,
            dict(
                grad=grad,
                gate=gate,
                addend=addend,
                grad_gate=grads.get('gate'),
                grad_addend=grads.get('addend'),
            ),
            dict(inner_ptr=inner),
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
