"""Superpixels drawn over their image, with what leaks, and measures over their number."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..frameworks import require
from ..ops.checks import check_positive_int
from .comparison import DPI, PANEL_INCHES, draw_pictures

COLOUR = (1.0, 1.0, 0.0)
LEAKAGE_COLOUR = (255, 0, 0)
# These are the panels of `draw_superpixel_curves`, by the measure.
PANELS = {
    'ASA': 'achievable segmentation accuracy',
    'BR': 'boundary recall (Stutz)',
    'BR-SEAL': 'boundary recall (SEAL)',
}


def find_leakage(superpixels: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Find the pixels that are not of the segment that most of their superpixel is of.

    Their share is what the achievable segmentation accuracy lacks to 1.

    Args:
        superpixels: (H, W), integers.
        segments: (H, W), integers. Of those that have equally many of a superpixel's pixels the
            least number is its own.

    Returns:
        (H, W), bool.

    Raises:
        ValueError: Maps of different sizes.
    """
    if superpixels.shape != segments.shape:
        raise ValueError(
            f'segments: expected the size of the superpixels, {superpixels.shape}, got '
            f'{segments.shape}'
        )
    _, owner = np.unique(superpixels.ravel(), return_inverse=True)
    numbers, segment = np.unique(segments.ravel(), return_inverse=True)
    pairs, counts = np.unique(owner * len(numbers) + segment, return_counts=True)
    owners, candidates = pairs // len(numbers), pairs % len(numbers)
    order = np.lexsort((candidates, -counts, owners))
    _, first = np.unique(owners[order], return_index=True)
    majority = candidates[order[first]]
    return (majority[owner] != segment).reshape(segments.shape)


def mark_superpixels(
    image: np.ndarray,
    superpixels: np.ndarray,
    scale: int = 1,
    segments: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the boundaries of superpixels over an image, and their leakage in red.

    Args:
        image: (H, W, 3), uint8, RGB.
        superpixels: (H, W), integers.
        scale: What the image is enlarged by, so that lines are finer than its pixels, an int.
        segments: What `find_leakage` takes, (H, W), integers. Default: no leakage is drawn.

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
    if segments is not None:
        leaks = find_leakage(superpixels, segments)
        image = np.where(leaks[..., None], np.uint8(LEAKAGE_COLOUR), image)
    image, superpixels = (
        x.repeat(scale, axis=0).repeat(scale, axis=1) for x in (image, superpixels)
    )
    marked = mark_boundaries(image, superpixels, color=COLOUR, mode='inner')
    return (255 * marked).round().astype(np.uint8)


def draw_superpixels(
    path: str | Path,
    images: Sequence[np.ndarray],
    superpixels: Sequence[Mapping[int, np.ndarray]] | Sequence[Mapping[str, np.ndarray]],
    segments: Sequence[np.ndarray] | None = None,
) -> None:
    """Write a picture: a row an image, a column the image itself and each level over it.

    Args:
        path: File to write; the suffix gives the format.
        images: (H, W, 3), uint8, RGB.
        superpixels: For each image the stride of a level, or its title, to its superpixels (H, W),
            the same levels for all.
        segments: For each image what `find_leakage` takes, (H, W). Default: no leakage is drawn.

    Raises:
        ValueError: Not the same number of all, other levels, or maps of another size than their
            image.
    """
    if len(superpixels) != len(images) or not images:
        raise ValueError(f'superpixels: expected {len(images)}, at least 1, got {len(superpixels)}')
    if segments is not None and len(segments) != len(images):
        raise ValueError(f'segments: expected {len(images)}, got {len(segments)}')
    names = list(superpixels[0])
    for i, levels in enumerate(superpixels):
        if list(levels) != names:
            raise ValueError(f'superpixels[{i}]: expected strides {names}, got {list(levels)}')
    truths = [None] * len(images) if segments is None else segments
    # Each image is enlarged to at least the resolution of the picture.
    scales = [math.ceil(PANEL_INCHES * DPI / image.shape[1]) for image in images]
    rows = [
        [image, *(mark_superpixels(image, levels[name], scale, truth) for name in names)]
        for image, levels, scale, truth in zip(images, superpixels, scales, truths, strict=True)
    ]

    titles = [name if isinstance(name, str) else f'clusters of stride {name}' for name in names]
    columns = zip(['image', *titles], zip(*rows, strict=True), strict=True)
    draw_pictures(path, dict(columns))


def draw_superpixel_curves(
    path: str | Path, curves: Mapping[str, Sequence[Mapping[str, float]]]
) -> None:
    """Write a picture of measures of superpixels over their number, a panel a measure.

    Args:
        path: File to write; the suffix gives the format.
        curves: Name of a curve to its points, each with 'count', the number of superpixels, and the
            measures 'ASA', 'BR' and 'BR-SEAL', in [0, 1]. NaN leaves a gap.

    Raises:
        ValueError: There is no curve, or one has no point.
    """
    if not curves or not all(curves.values()):
        counts = {name: len(points) for name, points in curves.items()}
        raise ValueError(f'curves: expected at least one, with points, got {counts}')
    figure = Figure(figsize=(4 * len(PANELS), 3.6), dpi=DPI, layout='constrained')
    for axis, (measure, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name, points in curves.items():
            points = sorted(points, key=lambda point: point['count'])
            x, y = ([point[key] for point in points] for key in ('count', measure))
            axis.plot(x, y, marker='o', markersize=4, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('superpixels')
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=9)
    figure.savefig(path)
