"""A2U from its definition, in whatever dtype it is given.

Every function takes a state dict, as tensors that require gradients, and the module for its
options; ``module.form`` is (mode, channel_wise, point_wise).
"""

import itertools

import torch
from torch.nn import functional as F
from upsampler_oracles import pad_to_even, shuffle

from sapa_mm.ops import reference


def encode(state, guide, module):
    """e (N, S, h, w): sum over c of (U_c * y) (V_c * y) / sqrt(Cy), in every 2 x 2 block."""
    n, channels = guide.shape[:2]
    mode, channel_wise, point_wise = module.form
    k = module.encoder_kernel
    sets = 4 if point_wise else 1
    padded = pad_to_even(guide)
    h, w = (side // 2 for side in padded.shape[2:])
    taps = F.unfold(padded, k, padding=(k - 1) // 2, stride=2).view(n, channels, k, k, h, w)
    product = 1
    for name in ('u', 'v'):
        if mode == 'dynamic':
            # Of the guide as it came.
            filters = torch.einsum(
                'fc,ncij->nfij',
                state[f'encoder_{name}.weight'][:, :, 0, 0],
                F.adaptive_avg_pool2d(guide, k),
            )
            filters = filters + state[f'encoder_{name}.bias'][:, None, None]
        else:
            filters = state[f'encoder_{name}'][:, 0].expand(n, -1, -1, -1)
        # Channel by channel, the sets of each together.
        filters = filters.reshape(n, channels if channel_wise else 1, sets, k, k)
        filters = filters.expand(n, channels, sets, k, k)
        part = torch.einsum('ncsij,ncijhw->ncshw', filters, taps)
        if f'norm_{name}.0.weight' in state:
            groups = part.reshape(n, 32, -1)
            centred = groups - groups.mean(dim=2, keepdim=True)
            scale = (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()
            part = (centred / scale).view(n, channels * sets, h, w)
            part = part * state[f'norm_{name}.0.weight'][:, None, None]
            part = part + state[f'norm_{name}.0.bias'][:, None, None]
            part = torch.where(part > 0, part, 0.01 * part).view(n, channels, sets, h, w)
        product = product * part
    return product.sum(dim=1) / channels**0.5


def project(state, guide, module, name):
    """P (N, 4K^2) of one direction."""
    if module.form[0] == 'static':
        return state[name].expand(len(guide), -1)
    pooled = guide.mean(dim=(2, 3))
    return pooled @ state[f'{name}.weight'][:, :, 0, 0].T + state[f'{name}.bias']


def upsample(state, x, guide, module):
    height, width = guide.shape[2:]
    e = encode(state, guide, module)
    # Channel p * 4 + j belongs to sub-position j.
    e = e.repeat(1, module.kernel_size**2, 1, 1) if module.form[2] else e
    logits = e * project(state, guide, module, 'projection_up')[:, :, None, None]
    weights = shuffle(logits, 2)[:, :, :height, :width]
    if module.normalization == 'sigmoid_softmax' or module.kernel_size == 1:
        weights = weights.sigmoid()
    if module.kernel_size > 1:
        weights = weights.softmax(dim=1)
    return reference.assemble(weights, x, kernel_size=module.kernel_size)


def downsample(state, guide, module):
    """Weights are ordered as of `upsample`: block p of the K x K around, sub-position j in it."""
    k = module.kernel_size
    e = encode(state, guide, module)
    h, w = e.shape[2:]
    e = e.repeat(1, k**2, 1, 1) if module.form[2] else e
    logits = e * project(state, guide, module, 'projection_down')[:, :, None, None]
    weights = logits.softmax(dim=1)
    # Offsets -(K - 1) .. +K around the upper left pixel.
    padded = F.pad(pad_to_even(guide), (k - 1, k - 1) * 2)
    out = 0
    for y, x, dy, dx in itertools.product(range(k), range(k), range(2), range(2)):
        rows = slice(2 * y + dy, 2 * y + dy + 2 * h, 2)
        cols = slice(2 * x + dx, 2 * x + dx + 2 * w, 2)
        weight = weights[:, (y * k + x) * 4 + 2 * dy + dx, None]
        out = out + weight * padded[:, :, rows, cols]
    return out
