"""Segmentations side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

IGNORED = 255
PANEL_INCHES = 2.4


def draw_pictures(path: str | Path, columns: dict[str, Sequence[np.ndarray]]) -> None:
    """Write a picture of pictures: a row an image, a titled column each kind.

    Args:
        path: File to write; the suffix gives the format.
        columns: Title of a column to its pictures, (H, W, 3) uint8, RGB, as many in every column.

    Raises:
        ValueError: Columns of different lengths, or none.
    """
    _grid(columns).savefig(path, dpi=150)


def _grid(columns: dict[str, Sequence[np.ndarray]], more_inches: float = 0.0) -> Figure:
    """Draw a figure of pictures, with so much room below them."""
    counts = {title: len(pictures) for title, pictures in columns.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f'columns: expected as many pictures in each, got {counts}')
    (rows,) = set(counts.values())
    height = PANEL_INCHES * rows + 0.3 + more_inches
    figure = Figure(figsize=(PANEL_INCHES * len(columns), height), layout='constrained')
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=10)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation='nearest')
            axes[row, column].set_axis_off()
    return figure


def draw_segmentations(
    path: str | Path,
    images: Sequence[np.ndarray],
    segmentations: dict[str, Sequence[np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Write a picture: a row an image, a column the image itself and each segmentation of it.

    Args:
        path: File to write; the suffix gives the format.
        images: (H, W, 3) uint8, RGB.
        segmentations: Title of a column to one (H, W) class map an image; 255 is left white.
        classes: Class names, for the legend.
        palette: RGB, 0 to 255, of each class.

    Raises:
        ValueError: A column has another number or size of maps than there are images, or
            ``palette`` and ``classes`` differ in length.
    """
    if len(palette) != len(classes):
        raise ValueError(f'palette: expected {len(classes)} colours, got {len(palette)}')
    for title, maps in segmentations.items():
        sizes, expected = [m.shape for m in maps], [image.shape[:2] for image in images]
        if sizes != expected:
            raise ValueError(f'segmentations[{title!r}]: expected sizes {expected}, got {sizes}')
    colours = np.full((IGNORED + 1, 3), 255, np.uint8)
    colours[: len(palette)] = palette
    columns = {'image': images} | {
        title: [colours[m] for m in maps] for title, maps in segmentations.items()
    }
    present = np.unique(
        np.concatenate([m.ravel() for maps in segmentations.values() for m in maps])
    )

    legend_inches = 0.3 * (1 + len(present) // 6)
    figure = _grid(columns, legend_inches)
    handles = [
        Patch(facecolor=colours[i] / 255, edgecolor='0.5', label=classes[i])
        for i in present
        if i < len(classes)
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=6, fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)
