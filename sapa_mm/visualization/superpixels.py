"""Superpixels drawn over their image."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..frameworks import require
from ..ops.checks import check_positive_int
from .comparison import DPI, PANEL_INCHES, draw_pictures

COLOUR = (1.0, 1.0, 0.0)


def mark_superpixels(image: np.ndarray, superpixels: np.ndarray, scale: int = 1) -> np.ndarray:
    """Draw the boundaries of superpixels over an image.

    Args:
        image: (H, W, 3), uint8, RGB.
        superpixels: (H, W), integers.
        scale: What the image is enlarged by, so that lines are finer than its pixels, an int.

    Returns:
        (scale * H, scale * W, 3), uint8, RGB.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: ``scale`` is no int.
        ValueError: Maps of different sizes, or ``scale`` is not positive.
    """
    check_positive_int('scale', scale)
    with require('scikit-image', 'mark_superpixels', 'scikit-image'):
        from skimage.segmentation import mark_boundaries
    if superpixels.shape != image.shape[:2]:
        raise ValueError(
            f'superpixels: expected the size of the image, {image.shape[:2]}, got '
            f'{superpixels.shape}'
        )
    image, superpixels = (
        x.repeat(scale, axis=0).repeat(scale, axis=1) for x in (image, superpixels)
    )
    marked = mark_boundaries(image, superpixels, color=COLOUR, mode='inner')
    return (255 * marked).round().astype(np.uint8)


def draw_superpixels(
    path: str | Path,
    images: Sequence[np.ndarray],
    superpixels: Sequence[Mapping[int, np.ndarray]],
) -> None:
    """Write a picture: a row an image, a column the image itself and each level over it.

    Args:
        path: File to write; the suffix gives the format.
        images: (H, W, 3), uint8, RGB.
        superpixels: For each image the stride of a level to its superpixels (H, W), the same
            strides for all.

    Raises:
        ValueError: Not the same number of both, other strides, or maps of another size than their
            image.
    """
    if len(superpixels) != len(images) or not images:
        raise ValueError(f'superpixels: expected {len(images)}, at least 1, got {len(superpixels)}')
    strides = list(superpixels[0])
    for i, levels in enumerate(superpixels):
        if list(levels) != strides:
            raise ValueError(f'superpixels[{i}]: expected strides {strides}, got {list(levels)}')
    # Each image is enlarged to at least the resolution of the picture.
    scales = [math.ceil(PANEL_INCHES * DPI / image.shape[1]) for image in images]
    rows = [
        [image, *(mark_superpixels(image, levels[stride], scale) for stride in strides)]
        for image, levels, scale in zip(images, superpixels, scales, strict=True)
    ]

    titles = ['image', *(f'clusters of stride {stride}' for stride in strides)]
    draw_pictures(path, dict(zip(titles, zip(*rows, strict=True), strict=True)))
