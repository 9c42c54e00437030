"""How well the edges of predicted depth lie on the true ones, by Koch et al. (2018)."""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from mmseg.registry import METRICS
from scipy.ndimage import distance_transform_edt, gaussian_filter1d

from ..frameworks import require
from ..ops.checks import check_positive
from .metric import check_crop, known_depth

# The standard deviation, in pixels, by which a map is smoothed before its edges are looked for.
SIGMA = 1.0
# A weak edge counts beside a strong one: its step is half as high.
WEAK = 0.5


def depth_edges(depth: np.ndarray, min_ratio: float = 1.15) -> np.ndarray:
    """Find the edges of a depth map, where depth jumps.

    They are Canny's of the logarithm of depth, which a jump from 1 to 1.5 m and one from 2 to 3 m
    change by as much. A slanted plane has no edge, as its slope is nowhere the steepest; where two
    planes meet there is none unless depth changes by more than 4 % a pixel, with the default. What
    is blurred over more than a pixel has to jump higher in order to be an edge. A step lies between
    two pixels, both as steep; at the corners of pixels, which are looked at, one is the steepest.

    Args:
        depth: (H, W), in metres; what is 0, negative, infinite or NaN is unknown.
        min_ratio: Ratio of the depths on the two sides of a step that is just found, more than 1.

    Returns:
        bool (H, W), one pixel wide: the pixels on the left of or above what jumps. There are none
        beside unknown depth or at the image's border.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: ``min_ratio`` is no number.
        ValueError: ``depth`` is no map, or ``min_ratio`` not above 1.
    """
    check_ratio(min_ratio)
    if depth.ndim != 2:
        raise ValueError(f'depth: expected a map (H, W), got {depth.shape}')
    with require('scikit-image', 'depth_edges', 'scikit-image'):
        from skimage.feature import canny
    known = np.isfinite(depth) & (depth > 0)
    logarithm = np.log(np.where(known, depth, 1.0).astype(np.float64))
    edges = np.zeros(depth.shape, bool)
    high = _step_slope() * math.log(min_ratio)
    # canny takes no image without pixels.
    if min(depth.shape) > 1:
        corners = np.mean(_around(logarithm), axis=0)
        corners_known = np.all(_around(known), axis=0)
        edges[:-1, :-1] = canny(corners, SIGMA, WEAK * high, high, mask=corners_known)
    return edges


def _around(image: np.ndarray) -> list[np.ndarray]:
    """Return the four pixels around every corner, (H - 1, W - 1) each."""
    return [image[:-1, :-1], image[:-1, 1:], image[1:, :-1], image[1:, 1:]]


def _step_slope() -> float:
    """Return the slope at a step of height 1, in the unit of scipy's Sobel filter."""
    step = np.repeat([0.0, 0.5, 1.0], [16, 1, 16])
    smooth = gaussian_filter1d(step, SIGMA)
    return float(4 * (smooth[17] - smooth[15]))


def check_ratio(min_ratio: object) -> None:
    """Raise TypeError unless it is a number, ValueError unless it is above 1."""
    check_positive('min_ratio', min_ratio)
    if min_ratio <= 1:  # type: ignore[operator]
        raise ValueError(f'min_ratio: expected more than 1, got {min_ratio}')


def boundary_errors(
    pred: np.ndarray, true: np.ndarray, max_distance: float = 10.0
) -> tuple[float, float] | None:
    r"""Compute the depth boundary errors of an image.

    With Y and Y* the sets of predicted and true edge pixels, E and E* the Euclidean distances to
    the nearest pixel of each, and :math:`\theta` the largest distance that counts,

    .. math::
        \mathrm{acc} = \frac{1}{|Y_\theta|} \sum_{p \in Y_\theta} E^*(p),\quad
        Y_\theta = \{p \in Y: E^*(p) \le \theta\}, \qquad
        \mathrm{comp} = \frac{1}{|Y^*|} \sum_{p \in Y^*} \min(E(p), \theta).

    Predicted edges far from all true ones do not count, so that ``acc`` says how well those lie
    that belong to a true edge, and ``comp`` whether every true one is there.

    Args:
        pred: Predicted edges, bool (H, W).
        true: True edges, bool (H, W).
        max_distance: In pixels.

    Returns:
        ``acc`` and ``comp``, in pixels, the less the better; ``acc`` is ``max_distance`` if no
        predicted edge is near a true one. None if there is no true edge.
    """
    if not true.any():
        return None
    to_true = distance_transform_edt(~true)
    near = pred & (to_true <= max_distance)
    accuracy = float(to_true[near].mean()) if near.any() else float(max_distance)
    if not pred.any():
        return accuracy, float(max_distance)
    to_pred = distance_transform_edt(~pred)[true]
    return accuracy, float(np.minimum(to_pred, max_distance).mean())


@METRICS.register_module()
class DepthBoundaryError(BaseMetric):
    """The depth boundary error of Koch et al. (2018), in pixels, the less the better.

    It reports 'dbe_acc' and 'dbe_comp' of `boundary_errors`, means over the images that have true
    edges. Koch et al. mark true edges by hand and take Canny's of predicted depth that is scaled to
    [0, 1]; here both are `depth_edges`, so that the same jump is an edge in both. What is predicted
    where the truth is unknown has no edges.

    Use it beside `EigenDepthMetric`. It needs scikit-image.

    Args:
        min_ratio: See `depth_edges`.
        max_distance: See `boundary_errors`. Default: theirs.
        crop: See `EigenDepthMetric`.
        collect_device: ``'cpu'`` or ``'gpu'``, see ``BaseMetric``.
        prefix: Prefix of the names, see ``BaseMetric``.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: An argument that is no number.
        ValueError: ``min_ratio`` is not above 1, ``max_distance`` not positive, or an unknown crop;
            later, a prediction of another size than the truth.
    """

    def __init__(
        self,
        min_ratio: float = 1.15,
        max_distance: float = 10.0,
        crop: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        check_ratio(min_ratio)
        check_positive('max_distance', max_distance)
        check_crop(crop)
        with require('scikit-image', type(self).__name__, 'scikit-image'):
            import skimage  # noqa: F401  now, and not at the first validation
        self.min_ratio = min_ratio
        self.max_distance = max_distance
        self.crop = crop

    def process(self, data_batch: Mapping, data_samples: Sequence[Mapping]) -> None:
        """Compute the errors of a batch."""
        for sample in data_samples:
            pred, depth = (x.float().numpy() for x in known_depth(sample, self.crop))
            known = np.isfinite(depth) & (depth > 0)
            found, true = (
                depth_edges(np.where(known, x, 0.0), self.min_ratio) for x in (pred, depth)
            )
            # mmengine drops a None, and then counts an image that a sampler repeats twice.
            self.results.append(boundary_errors(found, true, self.max_distance) or ())

    def compute_metrics(self, results: list[tuple[float, ...]]) -> dict[str, float]:
        """Average the errors over images.

        Args:
            results: Those of every image; empty where there is no true edge.

        Returns:
            'dbe_acc' and 'dbe_comp'; nothing, with a warning, if no image has a true edge, as
            those of sparse depth have none.
        """
        judged = [errors for errors in results if errors]
        logger = MMLogger.get_current_instance()
        if not judged:
            print_log(
                f'No depth boundary error: in none of {len(results)} images does the true depth '
                f'jump by a ratio of {self.min_ratio}',
                logger,
                logging.WARNING,
            )
            return {}
        acc, comp = np.mean(judged, axis=0).tolist()
        print_log(
            f'Depth boundary error of {len(judged)} images with edges: accuracy {acc:.3f}, '
            f'completeness {comp:.3f} pixels',
            logger,
        )
        return {'dbe_acc': acc, 'dbe_comp': comp}
