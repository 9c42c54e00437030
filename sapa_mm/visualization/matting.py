"""Alpha mattes side by side, with a zoom on where they are worst."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from .comparison import DPI, PANEL_INCHES, draw_pictures

# The zoom shows this share of the shorter side, and at least so many pixels.
ZOOM_SHARE = 0.25
LEAST_ZOOM = 24
FRAME = (220, 30, 30)


def alpha_to_rgb(alpha: np.ndarray) -> np.ndarray:
    """Draw alpha or a trimap (H, W), uint8, in shades of gray, (H, W, 3)."""
    return np.repeat(alpha[..., None], 3, axis=2)


def worst_region(error: np.ndarray, side: int) -> tuple[slice, slice]:
    """Find the square with the largest summed error.

    Args:
        error: (H, W), not negative.
        side: Side of the square, in pixels; it is cut to the map.

    Returns:
        Its rows and columns; of several the first.
    """
    height, width = (min(side, length) for length in error.shape)
    sums = cv2.integral(np.ascontiguousarray(error, np.float64))
    windows = (sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width]) + sums[
        :-height, :-width
    ]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return slice(int(top), int(top) + height), slice(int(left), int(left) + width)


def draw_mattes(
    path: str | Path,
    images: Sequence[np.ndarray],
    trimaps: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    truths: Sequence[np.ndarray] | None = None,
) -> None:
    """Write a picture of mattes: two rows an image, the whole and a zoom on the worst region.

    The region is where the errors of all predictions together are largest, and without a truth
    where they are closest to one half; it is framed in the image.

    Args:
        path: File to write; the suffix gives the format.
        images: (H, W, 3), uint8, RGB.
        trimaps: (H, W), uint8, of each image.
        predictions: Title of a column to one alpha an image, (H, W), uint8.
        truths: The true alpha of each image, likewise. Default: none.

    Raises:
        ValueError: No images, a map of another size than its image, or a prediction with the title
            of another column.
    """
    maps: dict[str, Sequence[np.ndarray]] = {'trimap': trimaps}
    if truths is not None:
        maps['truth'] = truths
    for title in predictions:
        if title in ('image', *maps):
            raise ValueError(f'predictions: expected other titles than those, got {title!r}')
    maps |= predictions
    sizes = [image.shape[:2] for image in images]
    for title, column in maps.items():
        if not sizes or [alpha.shape for alpha in column] != sizes:
            got = [alpha.shape for alpha in column]
            raise ValueError(
                f'{title}: expected a map of the size of each image, {sizes}, got {got}'
            )
    columns: dict[str, list[np.ndarray]] = {title: [] for title in ('image', *maps)}
    for i, image in enumerate(images):
        error = np.zeros(image.shape[:2])
        for column in predictions.values():
            if truths is None:
                error += 127.5 - np.abs(column[i] - 127.5)
            else:
                error += np.abs(column[i] - truths[i].astype(float))
        side = max(LEAST_ZOOM, round(ZOOM_SHARE * min(image.shape[:2])))
        region = worst_region(error, side)
        columns['image'] += [_framed(image, region), image[region]]
        for title, column in maps.items():
            whole = alpha_to_rgb(column[i])
            columns[title] += [whole, whole[region]]
    draw_pictures(path, columns)


def _framed(image: np.ndarray, region: tuple[slice, slice]) -> np.ndarray:
    """Return an image with a frame around a region, as wide as a line of the figure."""
    rows, cols = region
    line = math.ceil(image.shape[1] / (PANEL_INCHES * DPI))
    corner = (cols.stop - 1, rows.stop - 1)
    return cv2.rectangle(image.copy(), (cols.start, rows.start), corner, FRAME, line)
