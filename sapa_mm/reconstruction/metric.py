"""PSNR, SSIM, RMSE and MAE."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

# The window of Wang et al., 2004, and their two constants, for values in [0, 1].
RADIUS, SIGMA = 5, 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(pred: Tensor, target: Tensor, whole: bool = False) -> Tensor:
    r"""Compute the structural similarity of images in [0, 1].

    .. math::
        \mathrm{SSIM} = \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
                             {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}

    averaged over windows and channels (Image Quality Assessment: From Error Visibility to
    Structural Similarity, Wang et al., 2004), with C1 = .01^2, C2 = .03^2.

    Args:
        pred: Reconstructions (N, C, H, W), floating point.
        target: Images of the same shape.
        whole: Whether the whole image is one window, in which every pixel counts alike. Otherwise
            windows are the paper's, Gaussian, of 11 x 11 pixels and sigma 1.5, all of those that
            fit the image.

    Returns:
        (N,), float64.

    Raises:
        ValueError: Images smaller than a window.
    """
    # In single precision the variances, small differences of large squares, would lose digits.
    x, y = pred.double(), target.double()
    moments = torch.stack([x, y, x * x, y * y, x * y])
    if whole:
        moments = moments.mean((3, 4), keepdim=True)
    else:
        rows, columns = (_windows(size, x.device) for size in x.shape[2:])
        moments = rows @ moments @ columns.mT
    mean_x, mean_y, xx, yy, xy = moments
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    value = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
    return (value / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))).mean((1, 2, 3))


def _windows(size: int, device: torch.device) -> Tensor:
    """Return the matrix (size - 10, size) that averages over the windows of a line of pixels."""
    if size <= 2 * RADIUS:
        raise ValueError(
            f'pred: expected images of at least {2 * RADIUS + 1} pixels a side, got one of {size}'
        )
    centers = torch.arange(RADIUS, size - RADIUS, dtype=torch.float64, device=device)
    distance = torch.arange(size, dtype=torch.float64, device=device) - centers[:, None]
    weights = torch.exp(-(distance**2) / (2 * SIGMA**2)) * (distance.abs() <= RADIUS)
    return weights / weights.sum(1, keepdim=True)


def measure(pred: Tensor, target: Tensor) -> Tensor:
    """Measure how well each image is reconstructed.

    Args:
        pred: Reconstructions (N, C, H, W), floating point, at least 11 pixels high and wide.
        target: The images in [0, 1], of the same shape.

    Returns:
        (N, 5), float64: of each image the number of its values, the sums of their squared and
        absolute errors, the SSIM, and that of one window. They are what `summarize` takes.

    Raises:
        ValueError: Shapes that differ, or images smaller than a window of SSIM.
    """
    if pred.shape != target.shape:
        raise ValueError(
            'pred: expected prediction and target of one shape, got '
            f'{tuple(pred.shape)} and {tuple(target.shape)}'
        )
    error = (pred.double() - target.double()).flatten(1)
    count = torch.full_like(error[:, 0], error.shape[1])
    sums = error.square().sum(1), error.abs().sum(1)
    similarities = ssim(pred, target), ssim(pred, target, whole=True)
    return torch.stack([count, *sums, *similarities], 1)


def summarize(measured: Tensor | np.ndarray) -> dict[str, float]:
    """Average over all images.

    Args:
        measured: (N, 5), what `measure` gave.

    Returns:
        ``PSNR`` in dB (infinite where there is no error), ``SSIM``, ``GlobalSSIM``, ``RMSE`` and
        ``MAE``, as `ReconstructionMetric` defines them.
    """
    size, squared, absolute, similarity, global_similarity = map(float, measured.sum(0))
    rmse = math.sqrt(squared / size)
    return {
        'PSNR': -20 * math.log10(rmse) if rmse else math.inf,
        'SSIM': similarity / len(measured),
        'GlobalSSIM': global_similarity / len(measured),
        'RMSE': rmse,
        'MAE': absolute / size,
    }


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """Measure how well images in [0, 1] are reconstructed.

    - ``RMSE``: the square root of the mean squared error over all pixels of all images.
    - ``PSNR``: -20 log10(RMSE), in dB; not the mean of the images' own PSNR, which is larger.
    - ``MAE``: the mean absolute error over all pixels of all images.
    - ``SSIM``: the mean of the images' structural similarity (Wang et al., 2004), over the Gaussian
      windows of 11 x 11 pixels and sigma 1.5 that fit the image, with a data range of 1.
    - ``GlobalSSIM``: the same with the whole image as the only window. The A2U paper does not say
      which SSIM its Table 1 has; of the definitions that were tried, this comes closest to it.

    Args:
        collect_device: Where the results of several processes are gathered, ``'cpu'`` or
            ``'gpu'``. Default: ``'cpu'``.
        prefix: Put before the names as in ``'prefix/PSNR'``. Default: None.

    Raises:
        ValueError: If prediction and target differ in size, or are smaller than a window.
    """

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add the errors of one batch.

        Args:
            data_batch: Not used.
            data_samples: One dict an image with ``pred`` and ``target``, (C, H, W), at least 11
                pixels high and wide.
        """
        for sample in data_samples:
            found = measure(sample['pred'][None], sample['target'][None])
            # One entry an image lets mmengine drop what a distributed sampler adds at the end.
            self.results.append(found[0].cpu().numpy())

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over all images.

        Args:
            results: What `measure` gives, of every image.

        Returns:
            What `summarize` gives.
        """
        return summarize(np.stack(results))
