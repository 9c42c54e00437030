"""What turns the scores of a window into its weights, and the gradient of that."""

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to full precision also where exp(x) is small."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    # What 1 + e rounds off is made up for by the ratio of e to u - 1.
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def normalize(scores, counted, eps, NORMALIZATION: tl.constexpr):
    """Turn the scores of each row into weights: h(s) / (sum of h + eps), without eps for softmax.

    Args:
        scores: (M, N).
        counted: (M, N), which of them are in the row's window and take part.
        eps: Added to the sum.
        NORMALIZATION: Its name.

    Returns:
        Weights, 0 where not counted, and (M,), the scale by which `weights_of` has them again: the
        reciprocal of what they were divided by, of softmax the logarithm of the sum.
    """
    if NORMALIZATION == 'softmax':
        scores = tl.where(counted, scores, float('-inf'))
        top = tl.max(scores, 1)
        # Rows of pixels that are not there may have no window.
        top = tl.where(top == float('-inf'), 0.0, top)
        h = tl.exp(scores - top[:, None])
        total = tl.sum(h, 1)
        total = tl.where(total == 0.0, 1.0, total)
        weights, scale = h * (1.0 / total)[:, None], top + tl.log(total)
    elif NORMALIZATION == 'none':
        weights = tl.where(counted, scores, 0.0)
        scale = tl.full((scores.shape[0],), 1.0, tl.float32)
    else:
        h = tl.where(counted, positive(scores, NORMALIZATION), 0.0)
        scale = 1.0 / (tl.sum(h, 1) + eps)
        weights = h * scale[:, None]
    return weights, scale


@triton.jit
def positive(scores, NORMALIZATION: tl.constexpr):
    """Compute h of the scores: their sigmoid, what of them is positive, or their softplus."""
    if NORMALIZATION == 'sigmoid':
        h = 1.0 / (1.0 + tl.exp(-scores))
    elif NORMALIZATION == 'relu':
        h = tl.maximum(scores, 0.0)
    else:
        h = softplus(scores)
    return h


@triton.jit
def weights_of(scores, counted, scale, NORMALIZATION: tl.constexpr):
    """Compute weights again from what `normalize` gave with them.

    Args:
        scores: Any shape.
        counted: Which of them take part.
        scale: Of that shape or broadcast to it.
        NORMALIZATION: As `normalize` had it.
    """
    if NORMALIZATION == 'softmax':
        weights = tl.exp(tl.where(counted, scores - scale, float('-inf')))
    elif NORMALIZATION == 'none':
        weights = tl.where(counted, scores, 0.0)
    else:
        weights = tl.where(counted, positive(scores, NORMALIZATION) * scale, 0.0)
    return weights


@triton.jit
def normalize_bwd(grad, scores, weights, scale, counted, NORMALIZATION: tl.constexpr):
    """Gradient of the scores from that of the weights; 0 where not counted."""
    if NORMALIZATION == 'none':
        result = grad
    else:
        grad -= tl.sum(grad * weights, 1)[:, None]
        if NORMALIZATION == 'softmax':
            result = weights * grad
        else:
            if NORMALIZATION == 'sigmoid':
                slope = 1.0 / (1.0 + tl.exp(-scores))
                slope = slope / (1.0 + tl.exp(scores))
            elif NORMALIZATION == 'relu':
                slope = tl.where(scores > 0.0, 1.0, 0.0)
            else:
                slope = 1.0 / (1.0 + tl.exp(-scores))
            result = grad * slope * scale[:, None]
    return tl.where(counted, result, 0.0)
