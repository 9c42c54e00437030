"""SAD, MSE, gradient and connectivity error of alpha mattes, over a trimap's unknown region.

These are the errors of Rhemann et al., "A Perceptually Motivated Online Benchmark for Image
Matting" (CVPR 2009), with the constants by which results on Composition-1k are reported.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .files import UNKNOWN

# The sums are reported in thousands.
THOUSAND = 1000
# Standard deviation of the Gaussian derivative, and how far it reaches to each side, in pixels.
SIGMA, REACH = 1.4, 4
# Levels of the connectivity error, t_k = k / 10.
LEVELS = 10
# Differences to a pixel's level below this one leave it fully connected.
LEAST_DIFFERENCE = 0.15


def _check(pred: np.ndarray, truth: np.ndarray, unknown: np.ndarray) -> None:
    """Raise an error unless the three can be compared."""
    for name, array, dtype in (
        ('pred', pred, np.uint8),
        ('truth', truth, np.uint8),
        ('unknown', unknown, np.bool_),
    ):
        if not isinstance(array, np.ndarray):
            raise TypeError(f'{name} must be a NumPy array, got {type(array).__name__}')
        if array.dtype != dtype:
            raise ValueError(f'{name} must be of {np.dtype(dtype)}, got {array.dtype}')
        if array.ndim != 2:
            raise ValueError(f'{name} must be a map (height, width), got shape {array.shape}')
    if not pred.shape == truth.shape == unknown.shape:
        raise ValueError(
            'pred, truth and unknown must be of one size, got '
            f'{pred.shape}, {truth.shape} and {unknown.shape}'
        )
    if not unknown.any():
        raise ValueError(
            'unknown has no pixel: the errors are those of the unknown region, so that an image '
            'needs a trimap with one'
        )


def _difference(pred: np.ndarray, truth: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return pred - truth of the unknown pixels, in [-255, 255]."""
    return pred[unknown].astype(np.int64) - truth[unknown]


def sad(pred: np.ndarray, truth: np.ndarray, unknown: np.ndarray) -> float:
    """Return the sum of absolute differences over the unknown region.

    Args:
        pred: The predicted alpha, uint8 (H, W), of which 255 is opaque.
        truth: The true alpha, likewise.
        unknown: The pixels to compare, bool (H, W), at least one.

    Returns:
        sum |p - g| / 255, in thousands.

    Raises:
        TypeError: If one of them is not a NumPy array.
        ValueError: If a dtype or size is wrong, or no pixel is unknown.
    """
    _check(pred, truth, unknown)
    return float(np.abs(_difference(pred, truth, unknown)).sum() / 255 / THOUSAND)


def mse(pred: np.ndarray, truth: np.ndarray, unknown: np.ndarray) -> float:
    """Return the mean squared error of the unknown region.

    Args:
        pred: The predicted alpha, uint8 (H, W), of which 255 is opaque.
        truth: The true alpha, likewise.
        unknown: The pixels to compare, bool (H, W), at least one.

    Returns:
        mean ((p - g) / 255)^2 over the unknown pixels alone.

    Raises:
        TypeError: If one of them is not a NumPy array.
        ValueError: If a dtype or size is wrong, or no pixel is unknown.
    """
    _check(pred, truth, unknown)
    return float((_difference(pred, truth, unknown) ** 2).mean() / 255**2)


def _gradient(alpha: np.ndarray) -> np.ndarray:
    """Return the gradient's length (H, W) of a map, stretched to [0, 1] by its own extremes."""
    low, high = int(alpha.min()), int(alpha.max())
    if low == high:
        return np.zeros(alpha.shape)
    at = np.arange(-REACH, REACH + 1)
    smooth = np.exp(-(at**2) / (2 * SIGMA**2))
    slope = at * smooth
    # The filter is their outer product, whose norm is the product of theirs.
    smooth, slope = smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)
    stretched = (alpha.astype(np.float64) - low) / (high - low)
    along_x, along_y = (
        cv2.sepFilter2D(stretched, cv2.CV_64F, x, y, borderType=cv2.BORDER_REPLICATE)
        for x, y in ((slope, smooth), (smooth, slope))
    )
    return np.hypot(along_x, along_y)


def gradient_error(pred: np.ndarray, truth: np.ndarray, unknown: np.ndarray) -> float:
    """Return the gradient error of the unknown region.

    Each map is first stretched to [0, 1] by its own extremes; one of a single value has the
    gradient 0. Then it is filtered by the derivatives of a Gaussian of sigma 1.4, 9 x 9 pixels, of
    unit L2 norm, with the border replicated. So known pixels count as far as the filter reaches,
    and as extremes.

    Args:
        pred: The predicted alpha, uint8 (H, W), of which 255 is opaque.
        truth: The true alpha, likewise.
        unknown: The pixels to compare, bool (H, W), at least one.

    Returns:
        sum (|grad p| - |grad g|)^2 over the unknown pixels, in thousands.

    Raises:
        TypeError: If one of them is not a NumPy array.
        ValueError: If a dtype or size is wrong, or no pixel is unknown.
    """
    _check(pred, truth, unknown)
    difference = _gradient(pred)[unknown] - _gradient(truth)[unknown]
    return float((difference**2).sum() / THOUSAND)


def _levels(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return l (H, W): the last level to which a pixel is connected to the largest component."""
    least = np.minimum(pred, truth)
    levels = np.ones(least.shape)
    connected = np.ones(least.shape, bool)
    for k in range(1, LEVELS + 1):
        # t_k is compared in whole numbers: 153 / 255 is .6, and belongs to level 6.
        above = least >= -(-255 * k // LEVELS)
        if not above.any():
            break  # levels without a component are skipped, and those above are empty too
        _, numbers, stats, _ = cv2.connectedComponentsWithStats(
            above.astype(np.uint8), connectivity=4
        )
        areas = stats[:, cv2.CC_STAT_AREA]
        areas[0] = 0  # the pixels below the level, which are no component
        # The first pixel of the largest components decides between equal ones.
        largest = numbers == numbers.flat[areas[numbers].argmax()]
        levels[connected & ~largest] = (k - 1) / LEVELS
        connected &= largest
    return levels


def connectivity_error(pred: np.ndarray, truth: np.ndarray, unknown: np.ndarray) -> float:
    """Return the connectivity error of the unknown region.

    Omega_k is the largest 4-connected component of the pixels where both maps are at least
    t_k = k / 10, k = 1 to 10; of several largest ones, that of the uppermost pixel, of these the
    leftmost. A pixel's l is t_(k-1) for the first k at which it is outside Omega_k, or 1 if there
    is none. A level without any component is skipped: no pixel is outside it.

    Args:
        pred: The predicted alpha, uint8 (H, W), of which 255 is opaque.
        truth: The true alpha, likewise.
        unknown: The pixels to compare, bool (H, W), at least one.

    Returns:
        sum |phi_p - phi_g| over the unknown pixels, in thousands, where phi_a is 1 - (a - l) if
        a - l is at least .15, else 1.

    Raises:
        TypeError: If one of them is not a NumPy array.
        ValueError: If a dtype or size is wrong, or no pixel is unknown.
    """
    _check(pred, truth, unknown)
    levels = _levels(pred, truth)[unknown]
    lost = []
    for alpha in (pred, truth):
        difference = alpha[unknown] / 255 - levels
        lost.append(np.where(difference >= LEAST_DIFFERENCE, difference, 0))
    return float(np.abs(lost[0] - lost[1]).sum() / THOUSAND)


@METRICS.register_module()
class MattingMetric(BaseMetric):
    """Measure alpha mattes over the unknown region of their trimaps; less is better.

    Each figure is the mean over the images of that image's own:

    - ``SAD``: the sum of absolute differences, in thousands (:func:`sad`).
    - ``MSE``: the mean squared error, of alphas in [0, 1] (:func:`mse`).
    - ``Grad``: the gradient error, in thousands (:func:`gradient_error`).
    - ``Conn``: the connectivity error, in thousands (:func:`connectivity_error`).

    Args:
        collect_device: Where the results of several processes are gathered, ``'cpu'`` or
            ``'gpu'``. Default: ``'cpu'``.
        prefix: Put before the names as in ``'prefix/SAD'``. Default: None.

    Raises:
        KeyError: If a sample lacks one of its maps.
        ValueError: If a map is not of uint8 and (1, H, W), the sizes of one image differ, or its
            trimap has no unknown pixel.
    """

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add the errors of one batch.

        Args:
            data_batch: Not used.
            data_samples: One dict an image with ``pred_alpha``, ``gt_alpha`` and ``trimap``, each
                a dict whose ``data`` is a uint8 tensor (1, H, W); unknown pixels of the trimap
                are 128.
        """
        for sample in data_samples:
            maps = []
            for key in ('pred_alpha', 'gt_alpha', 'trimap'):
                data = sample[key]['data'].cpu().numpy()
                if data.dtype != np.uint8 or data.ndim != 3 or len(data) != 1:
                    raise ValueError(
                        f'{_name(sample)}{key} must be of uint8 and shape (1, H, W), '
                        f'got {data.dtype} and {data.shape}'
                    )
                maps.append(data[0])
            pred, truth, trimap = maps
            unknown = trimap == UNKNOWN
            # One entry an image lets mmengine drop what a distributed sampler adds at the end.
            try:
                errors = [
                    measure(pred, truth, unknown)
                    for measure in (sad, mse, gradient_error, connectivity_error)
                ]
            except ValueError as error:
                raise ValueError(f'{_name(sample)}{error}') from error
            self.results.append(errors)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over the images.

        Args:
            results: The four errors of each image.

        Returns:
            ``SAD``, ``MSE``, ``Grad`` and ``Conn``.
        """
        means = np.mean(results, axis=0).tolist()
        return dict(zip(('SAD', 'MSE', 'Grad', 'Conn'), means, strict=True))


def _name(sample: dict) -> str:
    """Return how an error names a sample: its image's path, if it has one."""
    return f'{sample["img_path"]}: ' if 'img_path' in sample else ''
