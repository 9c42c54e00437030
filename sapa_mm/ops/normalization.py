"""A normalization turns similarity scores into weights over the window."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# This is added to the sum that every normalization but softmax and none divides by.
NORMALIZATION_EPS = 1e-6

# Each entry is h of the normalization h(s) / (sum h(s) + eps), and the derivative of h.
_POSITIVE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    'sigmoid': (torch.sigmoid, lambda s: torch.sigmoid(s) * torch.sigmoid(-s)),
    'relu': (F.relu, lambda s: (s > 0).to(s.dtype)),
    # To be linear beyond 40 is exact in float64, beyond the default of 20 it is not.
    'softplus': (functools.partial(F.softplus, threshold=40), torch.sigmoid),
}
NORMALIZATIONS = ('softmax', *_POSITIVE, 'none')


def _positive_terms(
    scores: Tensor, normalization: str, valid: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute h of the scores, which is 0 where they are not valid, and what it is divided by."""
    h = _POSITIVE[normalization][0](scores)
    if valid is not None:
        h = h * valid
    return h, h.sum((-2, -1), keepdim=True) + eps


def normalize(
    scores: Tensor, normalization: str, valid: Tensor | None, eps: float = NORMALIZATION_EPS
) -> Tensor:
    """Turn the scores of a window into its weights.

    Args:
        scores: (..., K, K), contiguous.
        normalization: One of `NORMALIZATIONS`.
        valid: bool, broadcast to ``scores``: which positions take part; None for all.
        eps: Added to the sum that every normalization but 'softmax' and 'none' divides by.

    Returns:
        Weights of the same shape, 0 where not valid.
    """
    if normalization == 'softmax':
        if valid is not None:
            scores = scores.masked_fill(~valid, float('-inf'))
        return scores.flatten(-2).softmax(-1).view_as(scores)
    if normalization == 'none':
        # Outside the image the key is 0 and so is the score: nothing is left to mask.
        return scores
    h, total = _positive_terms(scores, normalization, valid, eps)
    return h / total


def normalize_backward(
    grad: Tensor,
    scores: Tensor,
    weights: Tensor,
    normalization: str,
    valid: Tensor | None,
    eps: float = NORMALIZATION_EPS,
) -> Tensor:
    """Return the gradient of `normalize` with respect to the scores.

    Args:
        grad: Gradient of the weights (..., K, K).
        scores: The scores that `normalize` was given.
        weights: The weights that it returned.
        normalization: The normalization that it was given.
        valid: The positions that it was given.
        eps: The addend that it was given.

    Returns:
        (..., K, K).
    """
    if normalization == 'none':
        return grad
    centred = grad - (grad * weights).sum((-2, -1), keepdim=True)
    if normalization == 'softmax':
        return weights * centred
    _, total = _positive_terms(scores, normalization, valid, eps)
    slope = _POSITIVE[normalization][1](scores)
    if valid is not None:
        slope = slope * valid
    return centred * slope / total
