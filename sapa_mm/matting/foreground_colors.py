"""Colours of a foreground where it is mixed with the background, and the way onto another."""

from collections.abc import Sequence

import cv2
import numpy as np

from .files import check_same_size


def estimate_foreground(
    image: np.ndarray, alpha: np.ndarray, radii: Sequence[int] = (90, 6)
) -> np.ndarray:
    """Estimate the colours of a foreground, of which an image shows a mix with its background.

    This is by blurred means, after Approximate Fast Foreground Colour Estimation (Forte, ICIP
    2021). For each radius in turn, with the mean over a box,
    F^ = mean(a F) / mean(a), B^ = mean((1 - a) B) / mean(1 - a) and
    F = F^ + a (I - a F^ - (1 - a) B^), clipped. F and B begin as the image I, and then are what the
    radius before gave. Where a box has no foreground F stays as it was, and likewise B; where alpha
    is 255 the image's colour stays.

    Args:
        image: (H, W, 3), uint8, with channels in any order.
        alpha: (H, W), uint8: 0 is background and 255 is foreground.
        radii: Sides of the boxes in pixels, which the paper calls radii. The image is reflected at
            its border.

    Returns:
        (H, W, 3), uint8, in the order of the image's channels.

    Raises:
        ValueError: Another shape, size or dtype, or a radius below 1.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'image: expected (H, W, 3) of uint8, got {image.shape} of {image.dtype}')
    if alpha.ndim != 2 or alpha.dtype != np.uint8:
        raise ValueError(f'alpha: expected (H, W) of uint8, got {alpha.shape} of {alpha.dtype}')
    check_same_size(image=image, alpha=alpha)
    if min(radii, default=0) < 1:
        raise ValueError(f'radii: expected positive ints, got {radii!r}')
    mixed = image.astype(np.float32) / 255
    a = (alpha.astype(np.float32) / 255)[..., None]
    fg = bg = mixed
    for radius in radii:
        fg_mean = _weighted_mean(fg, a, radius)
        bg_mean = _weighted_mean(bg, 1 - a, radius)
        fg = np.clip(fg_mean + a * (mixed - a * fg_mean - (1 - a) * bg_mean), 0, 1)
        bg = bg_mean
    colours = np.rint(255 * fg).astype(np.uint8)
    return np.where(alpha[..., None] == 255, image, colours)


def _weighted_mean(values: np.ndarray, weight: np.ndarray, radius: int) -> np.ndarray:
    """Return the mean over boxes of (H, W, 3), weighted by (H, W, 1); the values without weight."""
    box = (radius, radius)
    total = cv2.blur(weight, box)[..., None]
    # One pixel of the least weight, 1 / 255, has twice as much in its box.
    some = total > 0.5 / (255 * radius**2)
    mean = cv2.blur(values * weight, box) / np.where(some, total, 1)
    return np.where(some, mean, values)


def cover(background: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a background to cover a size, and crop it around its centre.

    Args:
        background: (H, W, 3), uint8.
        size: Height and width of the result.
    """
    height, width = background.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    scaled = max(size[0], round(scale * height)), max(size[1], round(scale * width))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(background, scaled[::-1], interpolation=way)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def compose(foreground: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Put a foreground on a background.

    Args:
        foreground: (H, W, 3), uint8; see `estimate_foreground`.
        alpha: (H, W), uint8.
        background: Likewise of any size; see `cover`.

    Returns:
        alpha F + (1 - alpha) B, (H, W, 3), uint8.
    """
    a = alpha[..., None].astype(np.float32) / 255
    height, width = alpha.shape
    mixed = a * foreground + (1 - a) * cover(background, (height, width))
    return np.rint(mixed).astype(np.uint8)
