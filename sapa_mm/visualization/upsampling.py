"""Pictures of what an upsampler does: its features, and the kernels that it used."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_choice
from .recording import UpsamplingStep

FEATURES = ('pca', 'first3')
# These percentiles of a feature get the darkest and the brightest colour; weights use the last.
PERCENTILES = (1, 99)
# These are the parent of a pixel and its neighbours above, below, left and right.
POSITIONS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
COLUMNS = 5
DPI = 130
SHEET_DPI = 100
PANEL_INCHES = 2.0
SHEET_PANEL_INCHES = 1.2
# The image is larger than the maps beside it by this ratio.
LEFT_RATIO = 1.5
# A row is at least so high, for its label.
LABEL_INCHES = 0.85
KERNEL_COLOURS = 'viridis'
TIMES, MINUS = '\u00d7', '\u2212'
PREDICTION_TITLE = 'boundary of the\nprediction'
COMPONENTS = {'pca': 'principal components', 'first3': 'channels'}
EXPLANATION = (
    'Features: the first three {} as red, green and blue, in one range of colours for the decoder '
    'feature and both that it is upsampled to.'
)
KERNEL_EXPLANATION = (
    '\nKernels: the weight that each pixel gives to the point (rows, columns) away from its parent '
    'in the decoder feature.'
)


def feature_to_rgb(*features: Tensor, mode: str = 'pca') -> list[np.ndarray]:
    """Turn features into pictures that can be compared.

    All of them share one projection to three components and one range of colours, from the 1st to
    the 99th percentile of each component.

    Args:
        *features: (C, H, W) each, of one C.
        mode: ``'pca'``, the first three principal components of all their points together, each
            with the sign that makes its largest coefficient positive; or ``'first3'``, the first
            three channels. What there is of neither is gray, as is what is constant.

    Returns:
        (H, W, 3), uint8, RGB, for each feature; points that are not finite are black.

    Raises:
        ValueError: An unknown mode, or features of several widths.
    """
    check_choice('mode', mode, FEATURES)
    widths = {feature.shape[0] for feature in features}
    if len(widths) != 1:
        raise ValueError(f'features: expected features of one width, got {sorted(widths)}')
    points = torch.cat([feature.detach().flatten(1) for feature in features], 1).cpu().double()
    finite = points.isfinite().all(0)
    known = points[:, finite]
    if mode == 'pca' and known.numel():
        # This is exact, and unlike torch.pca_lowrank it draws no random numbers.
        _, vectors = torch.linalg.eigh(torch.cov(known, correction=0).reshape(2 * [len(known)]))
        vectors = vectors[:, -3:].flip(1)
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        known = (vectors * largest.sign()).T @ (known - known.mean(1, keepdim=True))
    components = known[:3].numpy()
    colours = np.zeros((points.shape[1], 3))
    colours[finite.numpy()] = 0.5
    if components.size:
        low, high = np.percentile(components, PERCENTILES, axis=1, keepdims=True)
        # What rounding alone makes of a constant is no range.
        scale = np.abs(points[:, finite].numpy()).max()
        span = np.where(high - low > 1e-6 * scale, high - low, np.inf)
        scaled = np.where(np.isinf(span), 0.5, (components - low) / span)
        colours[finite.numpy(), : len(scaled)] = scaled.T.clip(0, 1)
    pictures = np.split(
        (255 * colours).round().astype(np.uint8),
        np.cumsum([feature[0].numel() for feature in features])[:-1],
    )
    return [
        picture.reshape(*feature.shape[1:], 3)
        for picture, feature in zip(pictures, features, strict=True)
    ]


def check_positions(positions: Sequence[Sequence[int]] | None, step: UpsamplingStep) -> None:
    """Raise ValueError unless ``positions`` are offsets (dy, dx) in the window of a step."""
    size = step.kernel_size
    if positions is None or size is None:
        return
    for dy, dx in positions:
        if max(abs(dy), abs(dx)) > size // 2:
            raise ValueError(
                f'position: expected offsets from {-(size // 2)} to {size // 2} in the window of '
                f'{size} x {size} of {step.name}, got {dy} {dx}'
            )


def input_image(inputs: Tensor, preprocessor: nn.Module, index: int = 0) -> np.ndarray:
    """Undo the normalization of what a network saw.

    Args:
        inputs: What the data preprocessor gave, (N, 3, H, W), images that were loaded as BGR. Of
            more channels, as a matting network's input has, the first three count.
        preprocessor: mmengine's ``ImgDataPreprocessor`` or its like in mmseg and mmdet.
        index: Number of the image in the batch.

    Returns:
        (H, W, 3), uint8, RGB, padded as the network saw it.
    """
    image = inputs[index, :3].detach().float()
    if getattr(preprocessor, '_enable_normalize', False):
        image = image * preprocessor.std + preprocessor.mean
    # The first is mmseg's name, the second that of mmengine and mmdet.
    converted = any(
        getattr(preprocessor, name, False) for name in ('channel_conversion', '_channel_conversion')
    )
    if not converted:
        image = image.flip(0)
    return image.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def draw_upsampling(
    step: UpsamplingStep,
    image: np.ndarray,
    prediction: np.ndarray | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    features: str = 'pca',
    index: int = 0,
    prediction_title: str = PREDICTION_TITLE,
) -> Figure:
    """Draw one step: what went in, what came out, and the kernels.

    Args:
        step: What was recorded.
        image: What the network saw, (H, W, 3), uint8, RGB.
        prediction: What it found, a picture as well. Default: none.
        positions: Window positions (dy, dx) whose weights are shown as maps. Default: the parent of
            a pixel and its four neighbours.
        features: How they are shown, as in `feature_to_rgb`.
        index: Number of the image in the batch.
        prediction_title: What it found. Default: the boundary of a segmentation.

    Returns:
        The figure, for ``savefig`` or `figure_to_rgb`.

    Raises:
        ValueError: An unknown choice, or a position outside the window.
    """
    check_positions(positions, step)
    pictures = _feature_pictures(step, features, index)
    maps = _kernel_maps(step, positions, index)
    panels = [(f'input image\n{_size(image)}', image)]
    panels += [(f'{title}\n{size}', picture) for title, size, picture in pictures]
    if prediction is not None:
        panels.append((prediction_title, prediction))

    ratio = image.shape[0] / image.shape[1]
    height = PANEL_INCHES * ratio
    rows = math.ceil(len(maps) / COLUMNS)
    below = rows * (height + 0.27) if maps else 0.3
    figure = Figure(
        figsize=(PANEL_INCHES * (COLUMNS + 1), height + below + 1.0), dpi=DPI, layout='constrained'
    )
    figure.suptitle(_title(step), fontsize=12)
    figure.supxlabel(_explanation(features, bool(maps)), fontsize=8, color='0.35')
    grid = figure.add_gridspec(
        1 + max(rows, 1), COLUMNS + 1, height_ratios=[height, *([height] * rows or [0.3])]
    )
    for column, (title, picture) in enumerate(panels):
        axis = figure.add_subplot(grid[0, column])
        axis.set_title(title, fontsize=9)
        _show(axis, picture, PANEL_INCHES, ratio)
    if not maps:
        axis = figure.add_subplot(grid[1, :])
        axis.set_axis_off()
        axis.text(0.5, 0.5, _no_kernels(step), ha='center', va='center', fontsize=9)
        return figure
    scale = _scale(list(maps.values()))
    for i, (position, weights) in enumerate(maps.items()):
        axis = figure.add_subplot(grid[1 + i // COLUMNS, i % COLUMNS])
        axis.set_title(f'kernel weight at {_offset(position)}', fontsize=9)
        _show(axis, weights, PANEL_INCHES, ratio, norm=scale, cmap=KERNEL_COLOURS)
    right = grid[1:, COLUMNS].subgridspec(1, 2, width_ratios=[0.1, 1])
    _draw_bar(figure.add_subplot(right[0]), scale)
    _draw_window(figure.add_subplot(right[1]), step.kernel_size, list(maps))
    return figure


def draw_upsampling_steps(
    steps: Sequence[UpsamplingStep],
    image: np.ndarray,
    prediction: np.ndarray | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    features: str = 'pca',
    index: int = 0,
    prediction_title: str = PREDICTION_TITLE,
    own_scales: bool = False,
) -> Figure:
    """Draw several steps on one sheet, a row each.

    Args:
        steps: What was recorded, at least one.
        image: As in `draw_upsampling`.
        prediction: Likewise.
        positions: Likewise; the first five are shown.
        features: Likewise.
        index: Likewise.
        prediction_title: Likewise.
        own_scales: Whether the kernels of each step have a scale of colours of their own, up to the
            99th percentile of what is shown. Default: all have one.

    Returns:
        The figure.

    Raises:
        ValueError: As `draw_upsampling`, or no steps.
    """
    if not steps:
        raise ValueError('steps: expected at least one, got none')
    for step in steps:
        check_positions(positions, step)
    maps = [_kernel_maps(step, positions, index) for step in steps]
    shown = list(dict.fromkeys(position for row in maps for position in row))[:COLUMNS]
    width = SHEET_PANEL_INCHES
    ratio = image.shape[0] / image.shape[1]
    left_width, left_height = LEFT_RATIO * width, LEFT_RATIO * width * ratio + 0.3
    rows_height = len(steps) * max(width * ratio + 0.06, LABEL_INCHES) + 0.4
    full_height = max(rows_height, left_height * (1 + (prediction is not None)))
    columns = 4 + len(shown)
    full_width = left_width + columns * (width + 0.08) + (2.0 if shown else 1.4)
    figure = Figure(figsize=(full_width, full_height + 0.45), dpi=SHEET_DPI, layout='constrained')
    figure.supxlabel(_explanation(features, bool(shown)), fontsize=8, color='0.35')
    grid = figure.add_gridspec(
        len(steps),
        1 + columns + bool(shown),
        width_ratios=[left_width, *[width] * columns, *[0.1] * bool(shown)],
    )
    left = figure.add_subfigure(grid[:, 0])
    _draw_left(left, image, prediction, prediction_title, left_height / full_height)
    if own_scales:
        tops = [_scale(list(row.values())).vmax for row in maps]
        maps = [{at: w / top for at, w in row.items()} for row, top in zip(maps, tops, strict=True)]
    scale = _scale([weights for row in maps for weights in row.values()])
    for row, step in enumerate(steps):
        for column, (title, _, picture) in enumerate(_feature_pictures(step, features, index)):
            axis = figure.add_subplot(grid[row, 1 + column])
            _show(axis, picture, width, ratio)
            if row == 0:
                axis.set_title(title.split(' by ')[0], fontsize=8)
            if column == 0:
                axis.set_ylabel(_row_label(step), fontsize=7.5, rotation=0, ha='right', va='center')
        for column, position in enumerate(shown, start=5):
            axis = figure.add_subplot(grid[row, column])
            if row == 0:
                axis.set_title(f'kernel weight\nat {_offset(position)}', fontsize=8)
            if position in maps[row]:
                _show(axis, maps[row][position], width, ratio, norm=scale, cmap=KERNEL_COLOURS)
            else:
                axis.set_axis_off()
                axis.text(0.5, 0.5, 'none', ha='center', va='center', fontsize=8)
    if shown:
        label = "weight, of the row's largest" if own_scales else 'weight'
        _draw_bar(figure.add_subplot(grid[:, -1]), scale, label)
    return figure


def figure_to_rgb(figure: Figure) -> np.ndarray:
    """Render a figure to (H, W, 3), uint8, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _feature_pictures(
    step: UpsamplingStep, features: str, index: int
) -> list[tuple[str, str, np.ndarray]]:
    """Return title, size and picture of the guide, the decoder feature and its upsamplings."""
    x, guide, output = (t[index].float() for t in (step.x, step.guide, step.output))
    bilinear = F.interpolate(x[None], output.shape[1:], mode='bilinear', align_corners=False)[0]
    (first,) = feature_to_rgb(guide, mode=features)
    others = feature_to_rgb(x, output, bilinear, mode=features)
    titles = (
        'encoder feature',
        'decoder feature',
        f'upsampled by {step.upsampler}',
        'upsampled bilinearly',
    )
    sizes = [f'{t.shape[0]} channels, {_size(t[0])}' for t in (guide, x, output, bilinear)]
    return list(zip(titles, sizes, [first, *others], strict=True))


def _kernel_maps(
    step: UpsamplingStep, positions: Sequence[Sequence[int]] | None, index: int
) -> dict[tuple[int, int], np.ndarray]:
    """Map window positions to their weight at every pixel, of the first group of channels."""
    size = step.kernel_size
    if size is None:
        return {}
    if positions is None:
        positions = [p for p in POSITIONS if max(map(abs, p)) <= size // 2]
    kernels = step.kernels[index, 0].unflatten(0, (size, size)).cpu().numpy()
    radius = size // 2
    return {(dy, dx): kernels[dy + radius, dx + radius] for dy, dx in positions}


def _scale(maps: list[np.ndarray]) -> Normalize:
    """Scale from 0, or the smallest weight if that is negative, to the 99th percentile."""
    values = np.concatenate([weights[np.isfinite(weights)] for weights in maps] or [np.ones(1)])
    if not values.size:
        return Normalize(0, 1)
    low, high = min(values.min(), 0), np.percentile(values, PERCENTILES[1])
    return Normalize(low, high if high > low else low + 1)


def _draw_bar(axis: Axes, scale: Normalize, label: str = 'weight') -> None:
    """Draw the scale of the kernels' colours; the arrow stands for the larger weights."""
    mappable = ScalarMappable(scale, KERNEL_COLOURS)
    bar = axis.figure.colorbar(mappable, cax=axis, extend='max', extendfrac=0.03)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=8)


def _show(axis: Axes, picture: np.ndarray, inches: float, ratio: float, **options: object) -> None:
    """Show a map in the image's frame, of height over width ``ratio``, and so over the image.

    Small ones show the pixels that they have.
    """
    small = max(picture.shape[:2]) < inches * DPI
    # All frames of a row have one size, though an odd side was rounded when it was halved.
    axis.imshow(
        picture,
        extent=(0, 1, ratio, 0),
        interpolation='nearest' if small else 'antialiased',
        **options,
    )
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color='0.6', linewidth=0.5)


def _draw_window(axis: Axes, size: int, positions: list[tuple[int, int]]) -> None:
    """Draw the window around the parent of a pixel, and which positions are shown."""
    shown = np.ones((size, size, 3))
    for dy, dx in positions:
        shown[dy + size // 2, dx + size // 2] = (0.62, 0.79, 0.88)
    axis.imshow(shown, interpolation='nearest')
    edges = np.arange(size + 1) - 0.5
    axis.hlines(edges, -0.5, size - 0.5, color='0.5', linewidth=0.6, clip_on=False)
    axis.vlines(edges, -0.5, size - 0.5, color='0.5', linewidth=0.6, clip_on=False)
    axis.plot(size // 2, size // 2, 'k.', markersize=4)
    axis.set_title(f'window, {size} {TIMES} {size}\nuniform: {size**-2:.3g}', fontsize=8)
    axis.set_axis_off()


def _draw_left(
    figure: SubFigure, image: np.ndarray, prediction: np.ndarray | None, title: str, share: float
) -> None:
    """Draw the image, and below it the prediction, each in a ``share`` of the height."""
    panels = [(f'input image, {_size(image)}', image)]
    if prediction is not None:
        panels.append((title, prediction))
    rest = max(1 - share * len(panels), 0.01)
    grid = figure.add_gridspec(1 + len(panels), 1, height_ratios=[*[share] * len(panels), rest])
    for i, (title, picture) in enumerate(panels):
        axis = figure.add_subplot(grid[i])
        axis.set_title(title, fontsize=8)
        axis.set_anchor('N')
        _show(axis, picture, LEFT_RATIO * SHEET_PANEL_INCHES, image.shape[0] / image.shape[1])


def _size(image: np.ndarray | Tensor) -> str:
    """Name the height and width of (H, W) or (H, W, 3)."""
    return f'{image.shape[0]} {TIMES} {image.shape[1]}'


def _offset(position: tuple[int, int]) -> str:
    """Write an offset (dy, dx) with its signs."""
    dy, dx = (f'{value:+d}'.replace('-', MINUS) if value else '0' for value in position)
    return f'({dy}, {dx})'


def _explanation(features: str, kernels: bool) -> str:
    """Say what the colours mean."""
    return EXPLANATION.format(COMPONENTS[features]) + KERNEL_EXPLANATION * kernels


def _kernels_in_words(step: UpsamplingStep) -> str:
    """Give K, and say of kernels in groups that only the first is shown."""
    if step.kernel_size is None:
        return 'no kernels'
    groups = step.kernels.shape[1]
    first = f', group 1 of {groups}' if groups > 1 else ''
    return f'K = {step.kernel_size}{first}'


def _title(step: UpsamplingStep) -> str:
    """Give name, upsampler, sizes and K."""
    low, high = _size(step.x[0, 0]), _size(step.output[0, 0])
    return f'{step.name}: {step.upsampler}, {low} to {high}, {_kernels_in_words(step)}'


def _row_label(step: UpsamplingStep) -> str:
    """Give the same, and the channels, line by line."""
    low, high = (_size(t[0, 0]) for t in (step.x, step.output))
    channels = f'{step.x.shape[1]} channels'
    kernels = _kernels_in_words(step).replace(', ', '\n')
    return '\n'.join([step.name, step.upsampler, f'{low} to {high}', channels, kernels])


def _no_kernels(step: UpsamplingStep) -> str:
    """Say why there are no kernels to show."""
    return (
        f'{step.upsampler} has no kernels to show: it does not assemble windows of the decoder '
        'feature by one call of point_affiliation or assemble.'
    )
