"""Depth maps as pictures: every map of a figure in one scale of colours."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..ops.checks import check_positive
from .comparison import DPI, PANEL_INCHES, Columns, fill_grid, grid_inches
from .upsampling import figure_to_rgb

# Both are perceptually uniform, and neither has a gray in it.
DEPTH_COLOURS = 'magma_r'
ERROR_COLOURS = 'viridis'
UNKNOWN = (128, 128, 128)
# An edge is found where a predicted one is as near as this, in pixels.
EDGE_DISTANCE = 2.0
BACKGROUND = (255, 255, 255)
# These three differ for the colour-blind too.
EDGES = {'found edge': (0, 0, 0), 'missed edge': (0, 114, 178), 'false edge': (230, 120, 0)}
STRIP_INCHES = 0.75
# Of pictures of whole pixels: the least width of a panel, the room above all for titles and below
# for the scale, in pixels, and the resolution of the letters.
LEAST_WIDTH = 200
ABOVE, BELOW = 20, 56
PIXELS_DPI = 100


def known_depth(depth: np.ndarray) -> np.ndarray:
    """Tell where depth is known, which is where it is positive and finite, bool (H, W)."""
    return np.isfinite(depth) & (depth > 0)


def depth_range(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """Return the least and the largest known depth of some maps, at least two different depths.

    Args:
        maps: (H, W) each, in metres.

    Returns:
        Two depths, in metres; 0 and 1 where nothing is known.
    """
    known = [depth[known_depth(depth)] for depth in maps]
    known = [depths for depths in known if depths.size]
    if not known:
        return 0.0, 1.0
    near = min(float(depths.min()) for depths in known)
    far = max(float(depths.max()) for depths in known)
    return near, far if far > near else near + 1


def depth_to_rgb(depth: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Turn a depth map into a picture.

    Near is light and far is dark. Depths outside the limits get the colour of the nearer limit.

    Args:
        depth: (H, W), in metres; where it is not positive or not finite, it is not known.
        limits: The depths that get the first and the last colour, in metres.

    Returns:
        (H, W, 3), uint8, RGB; unknown depth is gray, which the scale has nowhere.

    Raises:
        ValueError: ``depth`` is no map, or ``limits`` are not two growing depths.
    """
    _check_limits(limits)
    if depth.ndim != 2:
        raise ValueError(f'depth: expected a map (H, W), got the shape {depth.shape}')
    return _coloured(depth, limits, DEPTH_COLOURS, known_depth(depth))


def relative_error(depth: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute |depth - truth| / truth.

    Args:
        depth: (H, W), in metres, likewise.
        truth: (H, W), in metres; where it is not positive or not finite, it is not known.

    Returns:
        (H, W), float64; NaN where one of the two is not known.

    Raises:
        ValueError: Maps of different sizes.
    """
    if depth.shape != truth.shape:
        raise ValueError(f'depth: expected the size of the truth, {truth.shape}, got {depth.shape}')
    known = known_depth(depth) & known_depth(truth)
    error = np.full(truth.shape, np.nan)
    error[known] = np.abs(depth[known].astype(np.float64) - truth[known]) / truth[known]
    return error


def compare_edges(
    edges: np.ndarray, truth: np.ndarray, known: np.ndarray | None = None, width: int = 1
) -> np.ndarray:
    """Draw the edges of a predicted depth map over those of the truth.

    Args:
        edges: The predicted edges, (H, W), bool.
        truth: The true edges, likewise.
        known: Where the true depth is known, likewise. Default: everywhere.
        width: How wide lines are drawn, in pixels.

    Returns:
        (H, W, 3), uint8, RGB. Predicted edges are black where a true one is within
        `EDGE_DISTANCE` and orange elsewhere, true edges without a predicted one so near are blue.
        What is not known is gray, and nothing is drawn there.

    Raises:
        ValueError: Maps of different sizes.
    """
    known = np.ones_like(truth) if known is None else known
    for name, other in (('edges', edges), ('known', known)):
        if other.shape != truth.shape:
            raise ValueError(f'{name}: expected the size {truth.shape}, got {other.shape}')
    edges, truth = edges & known, truth & known
    kinds = {
        'missed edge': truth & ~_near(edges),
        'false edge': edges & ~_near(truth),
        'found edge': edges & _near(truth),
    }
    picture = np.full((*truth.shape, 3), BACKGROUND, np.uint8)
    for kind, where in kinds.items():
        picture[_thickened(where, width)] = EDGES[kind]
    picture[~known] = UNKNOWN
    return picture


def depths_to_rgb(
    image: np.ndarray, depths: Mapping[str, np.ndarray], limits: Sequence[float]
) -> np.ndarray:
    """Draw an image and depth maps side by side, pixel by pixel, and their scale below.

    Args:
        image: (H, W, 3), uint8, RGB.
        depths: Title of a map to the map, (H, W), as in `depth_to_rgb`.
        limits: The depths of the first and the last colour, in metres.

    Returns:
        uint8, RGB: the panels, which are enlarged by an int where they are narrower than
        ``LEAST_WIDTH``, below ``ABOVE`` rows of titles and above ``BELOW`` rows with the scale.

    Raises:
        ValueError: A map of another size than the image, or bad limits.
    """
    _check_limits(limits)
    _check_sizes([image], {title: [depth] for title, depth in depths.items()})
    panels = {'image': image} | {t: depth_to_rgb(depth, limits) for t, depth in depths.items()}
    scale = math.ceil(LEAST_WIDTH / image.shape[1])
    height, width = (scale * side for side in image.shape[:2])
    full_width, full_height = len(panels) * width, ABOVE + height + BELOW
    # Half a pixel more keeps the sizes when they are rounded down.
    inches = (full_width + 0.5) / PIXELS_DPI, (full_height + 0.5) / PIXELS_DPI
    figure = Figure(figsize=inches, dpi=PIXELS_DPI)
    for i, (title, panel) in enumerate(panels.items()):
        panel = panel.repeat(scale, axis=0).repeat(scale, axis=1)
        figure.figimage(panel, i * width, BELOW, origin='upper')
        x, y = (i + 0.5) / len(panels), 1 - 0.5 * ABOVE / full_height
        figure.text(x, y, title, ha='center', va='center', fontsize=9)
    axis = figure.add_axes((0.1, 18 / full_height, 0.8, 16 / full_height))
    _draw_depth_bar(axis, limits, extend='max')
    return figure_to_rgb(figure)


def draw_depths(
    path: str | Path,
    images: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    truths: Sequence[np.ndarray] | None = None,
    *,
    find_edges: Callable[[np.ndarray], np.ndarray] | None = None,
    limits: Sequence[float] | None = None,
    max_error: float = 0.5,
) -> None:
    """Write a picture of depth maps: a row an image, and a column each prediction.

    All depth maps have one scale of colours, and so have all errors. Below the depth of an image
    are, where the truth is given, the relative errors of the predictions, and where ``find_edges``
    is given as well, the depth edges, see `compare_edges`.

    Args:
        path: File to write; the suffix gives the format.
        images: (H, W, 3), uint8, RGB.
        predictions: Title of a column to one depth map an image, (H, W), in metres; where one is
            not positive or not finite, depth is not known and is shown in gray.
        truths: The true depth of each image, likewise. Default: none.
        find_edges: Maps depth, (H, W), to its edges, bool (H, W), such as
            `sapa_mm.depth.depth_edges`. Default: no edges are shown.
        limits: The depths of the first and the last colour, in metres. Default: the least and the
            largest true depth; where none is known, predicted depth.
        max_error: The relative error of the last colour. Default: 0.5.

    Raises:
        TypeError: ``max_error`` is no number.
        ValueError: No images, a map of another size than its image, ``limits`` are not two growing
            depths, ``max_error`` is not positive, edges without a truth to compare them with, or a
            prediction with the title 'image' or 'truth'.
    """
    check_positive('max_error', max_error)
    if find_edges is not None and truths is None:
        raise ValueError('find_edges: expected truths to compare the edges with, got none')
    for title in {'image', 'truth'} & predictions.keys():
        raise ValueError(f'predictions: expected other titles than image and truth, got {title!r}')
    depths = ({} if truths is None else {'truth': truths}) | dict(predictions)
    _check_sizes(images, depths)
    if limits is None:
        is_known = any(known_depth(truth).any() for truth in truths or [])
        shown = [truths] if is_known else predictions.values()
        limits = depth_range(depth for maps in shown for depth in maps)
    _check_limits(limits)

    rows: list[list[np.ndarray | str]] = []
    for i, image in enumerate(images):
        found = [maps[i] for maps in depths.values()]
        rows.append([image, *(depth_to_rgb(depth, limits) for depth in found)])
        if truths is None or not predictions:
            continue
        errors = [relative_error(depth, truths[i]) for depth in found[1:]]
        rows.append(['relative error', '', *(_error_to_rgb(error, max_error) for error in errors)])
        if find_edges is not None:
            edges = [find_edges(depth) for depth in found]
            # Lines have the width of the figure's pixels, so that none of them is left out.
            width = math.ceil(image.shape[1] / (PANEL_INCHES * DPI))
            known = known_depth(truths[i])
            rows.append(['depth edges', *(compare_edges(e, edges[0], known, width) for e in edges)])
    columns: Columns = dict(zip(['image', *depths], zip(*rows, strict=True), strict=True))

    width, height = grid_inches(columns)
    figure = Figure(figsize=(width, height + STRIP_INCHES), dpi=DPI, layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=[height, STRIP_INCHES])
    fill_grid(above, columns)
    has_errors = truths is not None and bool(predictions)
    axes = below.subplots(1, 2 + has_errors, width_ratios=[1] * (1 + has_errors) + [0.8])
    _draw_depth_bar(axes[0], limits, _extend(depths, limits))
    if has_errors:
        _draw_bar(axes[1], (0, max_error), ERROR_COLOURS, 'max')
        axes[1].set_title('|depth \u2212 truth| / truth', fontsize=8, pad=4)
    colours = (EDGES if find_edges is not None else {}) | {'not known': UNKNOWN}
    axes[-1].set_axis_off()
    axes[-1].legend(
        handles=[Patch(color=np.divide(c, 255), label=kind) for kind, c in colours.items()],
        loc='center',
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path)


def _check_limits(limits: Sequence[float]) -> None:
    """Raise ValueError unless these are two growing depths."""
    if len(limits) != 2 or not 0 <= limits[0] < limits[1] < math.inf:
        raise ValueError(f'limits: expected two depths, the first the smaller one, got {limits}')


def _check_sizes(images: Sequence[np.ndarray], depths: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Raise ValueError unless there are images, and as many maps in each column, of their sizes."""
    if not images:
        raise ValueError('images: expected at least one, got none')
    expected = [image.shape[:2] for image in images]
    for title, maps in depths.items():
        sizes = [depth.shape for depth in maps]
        if sizes != expected:
            raise ValueError(f'{title}: expected depth of sizes {expected}, got {sizes}')


def _extend(depths: Mapping[str, Sequence[np.ndarray]], limits: Sequence[float]) -> str:
    """Name the ends of the limits that depths are beyond, as matplotlib does."""
    known = [depth[known_depth(depth)] for maps in depths.values() for depth in maps]
    below = any((depth < limits[0]).any() for depth in known)
    above = any((depth > limits[1]).any() for depth in known)
    return {(0, 0): 'neither', (1, 0): 'min', (0, 1): 'max', (1, 1): 'both'}[below, above]


def _coloured(
    values: np.ndarray, limits: Sequence[float], colours: str, known: np.ndarray
) -> np.ndarray:
    """Give values their colours, and those that are not known the colour for it."""
    scaled = Normalize(*limits, clip=True)(np.where(known, values, limits[0]).astype(np.float64))
    picture = colormaps[colours](scaled, bytes=True)[..., :3]
    picture[~known] = UNKNOWN
    return picture


def _error_to_rgb(error: np.ndarray, max_error: float) -> np.ndarray:
    """Turn a map of relative errors into a picture."""
    return _coloured(error, (0, max_error), ERROR_COLOURS, ~np.isnan(error))


def _draw_bar(axis: Axes, limits: Sequence[float], colours: str, extend: str) -> None:
    """Draw a scale of colours from left to right."""
    mappable = ScalarMappable(Normalize(*limits), colours)
    bar = axis.figure.colorbar(
        mappable, cax=axis, orientation='horizontal', extend=extend, extendfrac=0.03
    )
    bar.ax.tick_params(labelsize=8)


def _draw_depth_bar(axis: Axes, limits: Sequence[float], extend: str) -> None:
    """Draw the scale of `depth_to_rgb` with its metres, from near to far."""
    _draw_bar(axis, limits, DEPTH_COLOURS, extend)
    for text, side in (('near', 'left'), ('depth in metres', 'center'), ('far', 'right')):
        axis.set_title(text, loc=side, fontsize=8, pad=4)


def _near(edges: np.ndarray) -> np.ndarray:
    """Tell where an edge is within `EDGE_DISTANCE`."""
    if not edges.any():
        return edges
    distance = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= EDGE_DISTANCE


def _thickened(edges: np.ndarray, width: int) -> np.ndarray:
    """Widen lines of one pixel."""
    return cv2.dilate(edges.astype(np.uint8), np.ones((width, width), np.uint8)).astype(bool)
