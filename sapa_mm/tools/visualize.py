"""Draw what every upsampler of a trained model does to images.

  %(prog)s CONFIG CHECKPOINT image.jpg another.jpg --steps c4_c3 c2_c1

For each image and upsampling step a picture, IMAGE_STEP.png: the image, the encoder feature that
guides, the decoder feature, what it is upsampled to, the same by bilinear interpolation, the
prediction of a segmentor or a depth estimator, and the kernels: the weight that every pixel gives
to a position of its window, as a map. IMAGE_steps.png has all steps of an image on one sheet.
CONFIG is a segmentor or a depth estimator of mmseg or a detector of mmdet with upsamplers; the
former two predict whole images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track
from torch import nn

from ..visualization import (
    draw_upsampling,
    draw_upsampling_steps,
    find_max_depth,
    input_image,
    outline_prediction,
    prediction_title,
    record_upsampling,
    select_upsamplers,
)
from ..visualization.upsampling import FEATURES, check_positions
from .arguments import usable_device
from .configs import read_config
from .errors import ToolError, reported_by
from .inference import check_files, load_model, predict, read_images
from .output import write_atomically


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', metavar='CONFIG', help="the model's config")
    add('checkpoint', type=Path, metavar='CHECKPOINT', help='its weights')
    add('images', type=Path, nargs='+', metavar='IMAGE', help='image files')
    add(
        '--out-dir',
        type=Path,
        default=Path('visualizations'),
        metavar='FOLDER',
        help='for the pictures (%(default)s)',
    )
    add('--device', type=usable_device, default='cpu', help='where to predict (%(default)s)')
    add('--steps', nargs='+', metavar='STEP', help='such as c4_c3 (default: all of the model)')
    add(
        '--position',
        dest='positions',
        action='append',
        nargs=2,
        type=int,
        metavar=('DY', 'DX'),
        help='position of the window whose weights are shown, in rows and columns from its centre; '
        'can be repeated (default: the centre and its four neighbours)',
    )
    add(
        '--features',
        choices=FEATURES,
        default='pca',
        help='how features become colours: their first principal components, or their first three '
        'channels (%(default)s)',
    )
    return parser


def check_names(images: Sequence[Path], folder: Path) -> None:
    """Check that every picture can have a file of its own.

    Args:
        images: Files of the images, whose stems begin the names of their pictures.
        folder: Where the pictures go.

    Raises:
        ToolError: Two images share a stem, or there is a file in the folder's place.
    """
    stems = [path.stem for path in images]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ToolError(f'IMAGE: expected names that differ, got {stem} twice')
    for path in (folder, *folder.parents):
        if path.is_file():
            raise ToolError(f'--out-dir: expected a folder, got the file {path}')


def read_model(options: argparse.Namespace) -> nn.Module:
    """Build the model with its weights.

    Raises:
        ToolError: The config cannot be read, the weights do not fit, or it has no such steps.
    """
    model = load_model(read_config(options.config), options.checkpoint, options.device)
    try:
        select_upsamplers(model, options.steps)
    except ValueError as error:
        raise ToolError(f'CONFIG: {options.config}: {error}') from error
    return model


def draw(model: nn.Module, image: np.ndarray, options: argparse.Namespace) -> dict[str, Figure]:
    """Draw what the upsamplers do to an image.

    Args:
        model: The model.
        image: (H, W, 3), uint8, BGR.
        options: The options.

    Returns:
        A picture of each step by its name, and at last 'steps', the sheet of all.

    Raises:
        ToolError: No step runs, or one has a window without the positions.
    """
    with record_upsampling(model, options.steps) as recording:
        sample = predict(model, image)
    steps = list(recording.steps.values())
    if recording.inputs is None or not steps:
        raise ToolError(f'CONFIG: {options.config}: none of the steps runs when it predicts')
    try:
        for step in steps:
            check_positions(options.positions, step)
    except ValueError as error:
        raise ToolError(f'--{error}') from error
    seen = input_image(recording.inputs, model.get_submodule('data_preprocessor'))
    max_depth = find_max_depth(model)
    shown = outline_prediction(seen, sample, max_depth)
    drawn = (seen, shown, options.positions, options.features)
    title = prediction_title(sample, max_depth)
    figures = {step.name: draw_upsampling(step, *drawn, prediction_title=title) for step in steps}
    figures['steps'] = draw_upsampling_steps(steps, *drawn, prediction_title=title)
    return figures


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, run the model, draw the pictures."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    written = []
    with reported_by(parser):
        check_files([options.checkpoint, *options.images])
        images = dict(zip(options.images, read_images(options.images), strict=True))
        check_names(options.images, options.out_dir)
        model = read_model(options)
        for path, image in track(images.items(), 'Images', transient=True):
            figures = draw(model, image, options)
            options.out_dir.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                out = options.out_dir / f'{path.stem}_{name}.png'
                write_atomically(out, figure.savefig)
                written.append(out)
    sys.stdout.writelines(f'{out}\n' for out in written)
