"""Segmentations side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch

Columns = Mapping[str, Sequence[np.ndarray | str]]

IGNORED = 255
PANEL_INCHES = 2.4
TITLE_INCHES = 0.3
DPI = 150


def draw_pictures(path: str | Path, columns: Columns) -> None:
    """Write a picture of pictures: a row an image, a titled column each kind.

    Args:
        path: File to write; the suffix gives the format.
        columns: Title of a column to its pictures, (H, W, 3) uint8, RGB, as many in every column. A
            str is a text in a picture's place.

    Raises:
        ValueError: Columns of different lengths, or none.
    """
    figure = Figure(figsize=grid_inches(columns), dpi=DPI, layout='constrained')
    fill_grid(figure, columns)
    figure.savefig(path)


def grid_inches(columns: Columns) -> tuple[float, float]:
    """Return the width and height that `fill_grid` takes.

    Raises:
        ValueError: Columns of different lengths, or none.
    """
    return PANEL_INCHES * len(columns), sum(_row_inches(columns)) + TITLE_INCHES


def fill_grid(figure: FigureBase, columns: Columns) -> None:
    """Draw pictures in rows and titled columns, see `draw_pictures`."""
    heights = _row_inches(columns)
    axes = figure.subplots(len(heights), len(columns), squeeze=False, height_ratios=heights)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=10)
        for row, picture in enumerate(pictures):
            axis = axes[row, column]
            axis.set_axis_off()
            if isinstance(picture, str):
                axis.text(0.5, 0.5, picture, ha='center', va='center', fontsize=10)
            else:
                axis.imshow(picture, interpolation='nearest')


def _row_inches(columns: Columns) -> list[float]:
    """Return how high the rows are: as their highest pictures, which are all of one width."""
    counts = {title: len(pictures) for title, pictures in columns.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f'columns: expected as many pictures in each, got {counts}')
    return [
        max(PANEL_INCHES * p.shape[0] / p.shape[1] for p in row if not isinstance(p, str))
        for row in zip(*columns.values(), strict=True)
    ]


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
    width, height = grid_inches(columns)
    figure = Figure(figsize=(width, height + legend_inches), dpi=DPI, layout='constrained')
    fill_grid(figure, columns)
    handles = [
        Patch(facecolor=colours[i] / 255, edgecolor='0.5', label=classes[i])
        for i in present
        if i < len(classes)
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=6, fontsize=9, frameon=False)
    figure.savefig(path)
