"""Pictures of what a network predicts, beside those of its upsampling."""

import math

import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F

from .depth import depth_range, depth_to_rgb
from .matting import alpha_to_rgb
from .superpixels import mark_superpixels
from .upsampling import DPI, PANEL_INCHES, PREDICTION_TITLE

ALPHA_TITLE = 'predicted alpha'


def outline_prediction(
    image: np.ndarray, sample: BaseDataElement, max_depth: float | None = None
) -> np.ndarray | None:
    """Draw a prediction: a segmentation's boundaries over the image, a depth map, or alpha.

    Args:
        image: What the network saw, (H, W, 3), uint8, RGB.
        sample: Data sample with the prediction of a segmentor, a depth estimator or a matting
            network. Without one there is nothing to draw.
        max_depth: The depth of the last colour, in metres; 0 has the first one. Default: the
            colours are those of the range that is predicted.

    Returns:
        uint8, RGB, or None. Of a segmentation the image, enlarged so that lines are finer than its
        pixels; of depth a picture of the image's size, as `depth_to_rgb` makes it, gray where the
        image is padded; of alpha likewise, white where it is 1.

    Raises:
        ImportError: scikit-image, which draws boundaries, is not installed.
    """
    if 'pred_depth_map' in sample:
        depth = _as_seen(sample.pred_depth_map.data, image, sample, mode='constant')
        return depth_to_rgb(depth, _limits(sample, max_depth))
    if 'pred_alpha' in sample:
        alpha = _as_seen(sample.pred_alpha.data, image, sample, mode='constant')
        return alpha_to_rgb(alpha.astype(np.uint8))
    if 'pred_sem_seg' in sample:
        classes = _as_seen(sample.pred_sem_seg.data, image, sample, mode='edge').astype(np.int64)
        scale = math.ceil(PANEL_INCHES * DPI / image.shape[1])
        return mark_superpixels(image, classes, scale)
    return None


def prediction_title(sample: BaseDataElement, max_depth: float | None = None) -> str:
    """Say what `outline_prediction` draws, and of depth in which scale.

    Args:
        sample: The same.
        max_depth: The same.

    Returns:
        A title of up to two lines.
    """
    if 'pred_alpha' in sample:
        return ALPHA_TITLE
    if 'pred_depth_map' not in sample:
        return PREDICTION_TITLE
    near, far = _limits(sample, max_depth)
    return f'predicted depth,\nlight {near:.3g} to dark {far:.3g} m'


def find_max_depth(model: nn.Module) -> float | None:
    """Return the largest depth that a depth estimator's head knows, or None, as of others."""
    return getattr(getattr(model, 'decode_head', None), 'max_depth', None)


def _limits(sample: BaseDataElement, max_depth: float | None) -> tuple[float, float]:
    """Return the depths of the first and the last colour."""
    if max_depth is not None:
        return 0.0, max_depth
    return depth_range([sample.pred_depth_map.data[0].detach().float().cpu().numpy()])


def _as_seen(data: Tensor, image: np.ndarray, sample: BaseDataElement, mode: str) -> np.ndarray:
    """Bring a map of (1, H, W) to what the network saw, float64 (H, W).

    What the network saw may be padded below and on the right, where nothing is predicted; ``mode``
    says how the map is, as in ``numpy.pad``.
    """
    height, width = sample.metainfo.get('img_shape', image.shape)[:2]
    # Nearest interpolation takes no integers, and float64 holds them exactly.
    fitted = F.interpolate(data[None].double(), (height, width), mode='nearest-exact')[0, 0]
    padding = [(0, image.shape[0] - height), (0, image.shape[1] - width)]
    return np.pad(fitted.detach().cpu().numpy(), padding, mode=mode)
