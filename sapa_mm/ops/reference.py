"""The tests believe these slow and obvious PyTorch versions of the operators.

Every window of every output pixel is gathered into memory, so a call takes ``kernel_size**2`` times
the memory of its result. The computation runs in the dtype of the inputs (the tests pass float64)
and autograd differentiates it. For anything but a comparison use :mod:`sapa_mm.ops`, which also
checks the inputs in full.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .normalization import NORMALIZATION_EPS

_POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    'sigmoid': torch.sigmoid,
    'relu': torch.relu,
    # Beyond the threshold it is linear: with the default of 20 it is off by 2e-9, with 40 exact.
    'softplus': partial(F.softplus, threshold=40),
}
_NORMALIZATIONS = ('softmax', *_POSITIVE, 'none')
_BORDERS = ('zero', 'mask', 'replicate')


def _window_indices(
    low: int, high: int, kernel_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Compute the positions of every output pixel's window along one axis.

    Args:
        low: Pixels of the low-resolution axis.
        high: Pixels of the output axis.
        kernel_size: Positions of the window, odd.
        device: Where the result lies.

    Returns:
        Two tensors (kernel_size, high): the positions, clamped to the axis, and whether they lay
        inside it before.
    """
    parent = torch.arange(high, device=device) * low // high
    offset = torch.arange(kernel_size, device=device) - kernel_size // 2
    position = parent[None, :] + offset[:, None]
    inside = (position >= 0) & (position < low)
    return position.clamp(0, low - 1), inside


def _gather_windows(
    feature: Tensor, guide_size: tuple[int, int], kernel_size: int
) -> tuple[Tensor, Tensor]:
    """Copy out the window of every output pixel, the edge repeated outside the image.

    Args:
        feature: Low-resolution feature (N, C, H, W).
        guide_size: Size (Hg, Wg) of the output.
        kernel_size: Side K of the window, odd.

    Returns:
        The windows (N, C, K*K, Hg, Wg), positions row-major, and a boolean mask (K*K, Hg, Wg) that
        is true where a position lies inside the image.
    """
    rows, rows_inside = _window_indices(
        feature.shape[2], guide_size[0], kernel_size, feature.device
    )
    cols, cols_inside = _window_indices(
        feature.shape[3], guide_size[1], kernel_size, feature.device
    )
    windows, inside = [], []
    for dy in range(kernel_size):
        for dx in range(kernel_size):
            windows.append(feature[:, :, rows[dy]][:, :, :, cols[dx]])
            inside.append(rows_inside[dy][:, None] & cols_inside[dx][None, :])
    return torch.stack(windows, dim=2), torch.stack(inside)


def _normalize(scores: Tensor, normalization: str, counted: Tensor) -> Tensor:
    """Turn scores (N, K*K, Hg, Wg) into weights; positions not ``counted`` get weight 0."""
    if normalization == 'none':
        return torch.where(counted, scores, 0)
    if normalization == 'softmax':
        return torch.where(counted, scores, -torch.inf).softmax(dim=1)
    positive = torch.where(counted, _POSITIVE[normalization](scores), 0)
    return positive / (positive.sum(dim=1, keepdim=True) + NORMALIZATION_EPS)


def point_affiliation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel_size: int = 5,
    normalization: str = 'softmax',
    temperature: float = 1.0,
    border: str = 'zero',
) -> Tensor:
    r"""Upsample ``value``: similarity, normalization over the window, weighted sum.

    With :math:`l = (i H \,//\, H_g,\; j W \,//\, W_g)` the low-resolution parent of output pixel
    :math:`l' = (i, j)` and :math:`p` running over the K x K offsets around it (SAPA, Lu et al.,
    NeurIPS 2022):

    .. math::
        s_p = \langle q_{l'}, k_{l+p} \rangle / t, \qquad
        w_p = h(s_p) / \textstyle\sum_{p'} h(s_{p'}), \qquad
        o_{l'} = \textstyle\sum_p w_p v_{l+p}

    Args:
        query: High-resolution embedding (N, D, Hg, Wg).
        key: Low-resolution embedding (N, D, H, W), H <= Hg and W <= Wg.
        value: Low-resolution feature (N, C, H, W).
        kernel_size: Side K of the window, odd. Default: 5.
        normalization: h: 'softmax' (exp), 'sigmoid', 'relu' or 'softplus', the last three with
            ``NORMALIZATION_EPS`` added to the sum; 'none' takes the scores themselves as weights.
            Default: 'softmax'.
        temperature: t, which divides the scores before the normalization. Default: 1.0.
        border: What a window position outside the image is. 'zero': key 0 (so score 0) and value 0,
            counted in the normalization; 'mask': left out of the normalization; 'replicate': the
            nearest edge pixel of key and value. Default: 'zero'.

    Returns:
        The upsampled feature (N, C, Hg, Wg).

    Raises:
        ValueError: ``normalization`` or ``border`` is none of the above.
    """
    if normalization not in _NORMALIZATIONS:
        raise ValueError(f'normalization must be one of {_NORMALIZATIONS}, got {normalization!r}')
    if border not in _BORDERS:
        raise ValueError(f'border must be one of {_BORDERS}, got {border!r}')
    guide_size = (query.shape[2], query.shape[3])
    keys, inside = _gather_windows(key, guide_size, kernel_size)
    values, _ = _gather_windows(value, guide_size, kernel_size)
    if border != 'replicate':
        keys = torch.where(inside, keys, 0)
        values = torch.where(inside, values, 0)
    scores = (query[:, :, None] * keys).sum(dim=1) / temperature
    counted = inside if border == 'mask' else torch.ones_like(inside)
    weights = _normalize(scores, normalization, counted)
    return (weights[:, None] * values).sum(dim=2)


def local_similarity(
    query: Tensor, key: Tensor, *, kernel_size: int = 5, temperature: float = 1.0
) -> Tensor:
    r"""Score every output pixel against its parent's window (SAPA, Lu et al., NeurIPS 2022).

    .. math:: s_{l', p} = \langle q_{l'}, k_{l+p} \rangle / t

    with l the parent of l' and p an offset, as in :func:`point_affiliation`.

    Args:
        query: High-resolution embedding (N, D, Hg, Wg).
        key: Low-resolution embedding (N, D, H, W), H <= Hg and W <= Wg.
        kernel_size: Side K of the window, odd. Default: 5.
        temperature: t, which divides the scores. Default: 1.0.

    Returns:
        Scores (N, K*K, Hg, Wg), window positions row-major, 0 outside the image.
    """
    keys, inside = _gather_windows(key, (query.shape[2], query.shape[3]), kernel_size)
    keys = torch.where(inside, keys, 0)
    return (query[:, :, None] * keys).sum(dim=1) / temperature


def assemble(weights: Tensor, value: Tensor, *, kernel_size: int = 5, groups: int = 1) -> Tensor:
    r"""Sum over every output pixel's window by weights (SAPA, Lu et al., NeurIPS 2022).

    .. math:: o_{l'} = \textstyle\sum_p w_{l', p} v_{l+p}

    with l the parent of l' and p an offset, as in :func:`point_affiliation`.

    Args:
        weights: Weights (N, G*K*K, Hg, Wg), group by group, window positions row-major.
        value: Low-resolution feature (N, C, H, W), H <= Hg and W <= Wg; 0 outside the image.
        kernel_size: Side K of the window, odd. Default: 5.
        groups: G, blocks of consecutive channels of ``value`` with weights of their own.
            Default: 1.

    Returns:
        The upsampled feature (N, C, Hg, Wg).
    """
    values, inside = _gather_windows(value, (weights.shape[2], weights.shape[3]), kernel_size)
    values = torch.where(inside, values, 0)
    group = value.shape[1] // groups
    results = []
    for g in range(groups):
        own = weights[:, g * kernel_size**2 : (g + 1) * kernel_size**2]
        results.append((own[:, None] * values[:, g * group : (g + 1) * group]).sum(dim=2))
    return torch.cat(results, dim=1)


def embed(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    normalize: bool = True,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    gate: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:
    r"""Normalize every pixel over its channels, project it, and mix in a low-resolution map.

    .. math::
        a = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta, \qquad e = W a + b, \qquad
        o_{l'} = g_l e_{l'} + (1 - g_l) s_l

    with l the parent of l', :math:`g = \mathrm{sigmoid}(z)`; :math:`o = e + s_l` without z, and
    :math:`o = e` without s (the query of SAPA, Lu et al., NeurIPS 2022).

    Args:
        x: Feature (N, C, H, W).
        weight: W (D, C). Default: a is not projected.
        bias: b (D,). Default: none.
        normalize: Whether a is the above; otherwise it is x. Default: True.
        norm_weight: :math:`\gamma` (C,). Default: 1.
        norm_bias: :math:`\beta` (C,). Default: 0.
        eps: :math:`\epsilon`. Default: 1e-5.
        gate: z (N, 1, h, w). Default: none.
        addend: s (N, D, h, w). Default: none.

    Returns:
        The embedding (N, D, H, W).
    """
    result = x
    if normalize:
        centred = x - x.mean(dim=1, keepdim=True)
        result = centred / (centred.square().mean(dim=1, keepdim=True) + eps).sqrt()
        if norm_weight is not None:
            result = result * norm_weight[:, None, None]
        if norm_bias is not None:
            result = result + norm_bias[:, None, None]
    if weight is not None:
        result = torch.einsum('dc,nchw->ndhw', weight, result)
    if bias is not None:
        result = result + bias[:, None, None]
    if addend is None:
        return result
    high, low = x.shape[2:], addend.shape[2:]
    rows, cols = (_window_indices(n, m, 1, x.device)[0][0] for n, m in zip(low, high, strict=True))
    addend = addend[:, :, rows][:, :, :, cols]
    if gate is None:
        return result + addend
    share = gate[:, :, rows][:, :, :, cols].sigmoid()
    return share * result + (1 - share) * addend


def average(weights: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Give every cluster the mean of its points (SSN, Jampani et al., ECCV 2018, equation 4).

    .. math:: s_k = \sum_{l'} w_{l', k - l} v_{l'} / \sum_{l'} w_{l', k - l}

    Args:
        weights: Weights (N, K*K, Hg, Wg), window positions row-major; outside the grid they do not
            count.
        value: Values of the points (N, C, Hg, Wg).
        size: The grid (H, W), at most (Hg, Wg).

    Returns:
        The means (N, C, H, W), 0 where a cluster has no points.
    """
    places = torch.arange(size[0] * size[1], device=value.device).reshape(1, 1, *size)
    kernel_size = round(weights.shape[1] ** 0.5)
    places, inside = _gather_windows(places, (value.shape[2], value.shape[3]), kernel_size)
    # Every pixel's weights for all the clusters there are, (N, H*W, Hg*Wg).
    dense = weights.new_zeros(len(weights), size[0] * size[1], *value.shape[2:])
    dense = dense.scatter_add(1, places[0].expand_as(weights), torch.where(inside, weights, 0))
    dense = dense.flatten(2)
    total = dense.sum(dim=2, keepdim=True)
    means = dense @ value.flatten(2).transpose(1, 2) / torch.where(total == 0, 1, total)
    return means.transpose(1, 2).unflatten(2, size)


def soft_slic(features: Tensor, size: tuple[int, int], iterations: int = 5) -> Tensor:
    r"""Assign pixels to superpixels in turns (SSN, Jampani et al., ECCV 2018, equations 3 and 4).

    .. math:: Q_{l', p} = \mathrm{softmax}_p(-\lVert x_{l'} - S_{l+p} \rVert^2)

    with l the parent of l' and p an offset, and S the means by Q, at first of the cells.

    Args:
        features: Pixels (N, D, Hg, Wg).
        size: The grid (H, W), at most (Hg, Wg).
        iterations: How often the pixels are assigned. Default: 5.

    Returns:
        The assignment (N, 9, Hg, Wg), window positions row-major, 0 outside the grid.
    """

    def assign(centers: Tensor) -> Tensor:
        windows, inside = _gather_windows(centers, (features.shape[2], features.shape[3]), 3)
        distance = (features[:, :, None] - windows).square().sum(dim=1)
        return torch.softmax(torch.where(inside, -distance, -torch.inf), dim=1)

    weights = assign(F.adaptive_avg_pool2d(features, size))
    for _ in range(iterations - 1):
        weights = assign(average(weights, features, size))
    return weights
