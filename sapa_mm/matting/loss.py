"""The losses of matting, over the unknown region."""

from torch import Tensor

EPS = 1e-12


def alpha_loss(pred: Tensor, alpha: Tensor, unknown: Tensor) -> Tensor:
    r"""Measure how far predicted alpha is from the truth.

    .. math::
        \frac{1}{|M| + 1} \sum_{i \in M} \sqrt{(\hat\alpha_i - \alpha_i)^2 + \epsilon^2}

    of every image, with M its unknown region and :math:`\epsilon = 10^{-6}`, then the mean over the
    batch (Deep Image Matting, Xu et al., CVPR 2017).

    Args:
        pred: Predicted alpha (N, 1, H, W).
        alpha: The truth, likewise, in [0, 1].
        unknown: bool (N, 1, H, W), the unknown region.

    Returns:
        A scalar.

    Raises:
        ValueError: Maps of different sizes.
    """
    _check_alike(pred, alpha=alpha, unknown=unknown)
    return _mean_over(unknown, pred - alpha)


def composition_loss(
    pred: Tensor, alpha: Tensor, foreground: Tensor, background: Tensor, unknown: Tensor
) -> Tensor:
    r"""Measure how far the composition by predicted alpha is from the image.

    The image is that of the true alpha, so that the difference of the two,

    .. math::
        (\hat\alpha F + (1 - \hat\alpha) B) - (\alpha F + (1 - \alpha) B)
        = (\hat\alpha - \alpha) (F - B),

    is penalized as in `alpha_loss`, summed over the colours.

    Args:
        pred: Predicted alpha (N, 1, H, W).
        alpha: The truth, likewise, in [0, 1].
        foreground: F, (N, 3, H, W), in [0, 1].
        background: B, likewise.
        unknown: bool (N, 1, H, W), the unknown region.

    Returns:
        A scalar.

    Raises:
        ValueError: Maps of different sizes.
    """
    _check_alike(pred, alpha=alpha, unknown=unknown)
    return _mean_over(unknown, (pred - alpha) * (foreground - background))


def _check_alike(pred: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.shape != pred.shape:
            raise ValueError(
                f'{name}: expected the shape of pred, {tuple(pred.shape)}, got {tuple(other.shape)}'
            )


def _mean_over(unknown: Tensor, error: Tensor) -> Tensor:
    """Return the batch's mean of the images' summed errors over their unknown pixels."""
    total = ((error.square() + EPS).sqrt() * unknown).sum((1, 2, 3))
    return (total / (unknown.sum((1, 2, 3)) + 1)).mean()
