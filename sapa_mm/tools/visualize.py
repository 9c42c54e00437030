"""Draw what every upsampler of a trained model does to images.

  %(prog)s CONFIG CHECKPOINT image.jpg another.jpg --steps c4_c3 c2_c1
  %(prog)s CONFIG CHECKPOINT image.jpg --beside CONFIG CHECKPOINT --beside CONFIG CHECKPOINT

For each image and upsampling step a picture, IMAGE_STEP.png: the image, the encoder feature that
guides, the decoder feature, what it is upsampled to, the same by bilinear interpolation, the
prediction of all but detectors, and the kernels: the weight that every pixel gives
to a position of its window, as a map. IMAGE_steps.png has all steps of an image on one sheet.
CONFIG is a segmentor or a depth estimator of mmseg, a detector of mmdet or a matting network, with
upsamplers; all but detectors predict whole images.

With --beside there is one picture for each image, IMAGE_models.png: the last step of all the
models, or the last of --steps, a row each under what its config's name does not share.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mmengine.structures import BaseDataElement
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
from ..visualization.recording import Recording, UpsamplingStep
from ..visualization.upsampling import FEATURES, check_positions
from .arguments import usable_device
from .configs import read_config
from .errors import ToolError, reported_by
from .inference import check_files, load_model, predict, read_images, read_trimaps
from .output import write_atomically

# This is an image, (H, W, 3), uint8, BGR, and its trimap, (H, W), uint8, if it has one.
Matted = tuple[np.ndarray, np.ndarray | None]


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
        '--beside',
        action='append',
        nargs=2,
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='another model whose last step goes on the sheet; can be repeated',
    )
    add(
        '--trimaps',
        type=Path,
        nargs='+',
        metavar='TRIMAP',
        help='for every image its trimap, which a matting network needs',
    )
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


def read_inputs(options: argparse.Namespace) -> list[Matted]:
    """Read the images and, where there are some, their trimaps.

    Raises:
        ToolError: A file is missing or damaged, or the trimaps do not fit the images.
    """
    images = read_images(options.images)
    if options.trimaps is None:
        return [(image, None) for image in images]
    trimaps = read_trimaps(options.trimaps, options.images, images)
    return list(zip(images, trimaps, strict=True))


def read_model(config: str, checkpoint: Path, options: argparse.Namespace) -> nn.Module:
    """Build a model with its weights.

    Raises:
        ToolError: The config cannot be read, the weights do not fit, or it has no such steps.
    """
    model = load_model(read_config(config), checkpoint, options.device)
    try:
        select_upsamplers(model, options.steps)
    except ValueError as error:
        raise ToolError(f'CONFIG: {config}: {error}') from error
    return model


def record(
    model: nn.Module, image: Matted, config: str, options: argparse.Namespace
) -> tuple[Recording, BaseDataElement]:
    """Let a model predict an image, and record its steps.

    Args:
        model: The model.
        image: The image.
        config: What the user calls the model.
        options: The options.

    Returns:
        The recording, and what the model found.

    Raises:
        ToolError: No step runs, or one has a window without the positions.
    """
    with record_upsampling(model, options.steps) as recording:
        sample = predict(model, *image)
    if recording.inputs is None or not recording.steps:
        raise ToolError(f'CONFIG: {config}: none of the steps runs when it predicts')
    try:
        for step in recording.steps.values():
            check_positions(options.positions, step)
    except ValueError as error:
        raise ToolError(f'--{error}') from error
    return recording, sample


def input_of(model: nn.Module, recording: Recording) -> np.ndarray:
    """Return the image that a model saw, (H, W, 3), uint8, RGB."""
    assert recording.inputs is not None
    return input_image(recording.inputs, model.get_submodule('data_preprocessor'))


def draw(model: nn.Module, image: Matted, options: argparse.Namespace) -> dict[str, Figure]:
    """Draw what the upsamplers do to an image.

    Args:
        model: The model.
        image: The image.
        options: The options.

    Returns:
        A picture of each step by its name, and at last 'steps', the sheet of all.

    Raises:
        ToolError: As `record`.
    """
    recording, sample = record(model, image, options.config, options)
    steps = list(recording.steps.values())
    seen = input_of(model, recording)
    max_depth = find_max_depth(model)
    shown = outline_prediction(seen, sample, max_depth)
    drawn = (seen, shown, options.positions, options.features)
    title = prediction_title(sample, max_depth)
    figures = {step.name: draw_upsampling(step, *drawn, prediction_title=title) for step in steps}
    figures['steps'] = draw_upsampling_steps(steps, *drawn, prediction_title=title)
    return figures


def short_names(configs: Sequence[str]) -> dict[str, str]:
    """Name configs by the fields of their names, between underscores, that not all of them have."""
    fields = {config: Path(config).stem.split('_') for config in configs}
    shared = set.intersection(*(set(own) for own in fields.values()))
    return {
        config: '\n'.join(field for field in own if field not in shared) or Path(config).stem
        for config, own in fields.items()
    }


def draw_beside(
    models: Sequence[tuple[str, nn.Module]], image: Matted, options: argparse.Namespace
) -> dict[str, Figure]:
    """Draw what the last step of several models does to an image.

    Args:
        models: The models, each with its config.
        image: The image.
        options: The options.

    Returns:
        The sheet, under 'models'.

    Raises:
        ToolError: As `record`.
    """
    names = short_names([config for config, _ in models])
    steps: list[UpsamplingStep] = []
    seen = None
    for config, model in models:
        recording, _ = record(model, image, config, options)
        seen = input_of(model, recording) if seen is None else seen
        step = list(recording.steps.values())[-1]
        steps.append(dataclasses.replace(step, name=f'{names[config]}\n{step.name}'))
    assert seen is not None
    sheet = draw_upsampling_steps(
        steps, seen, None, options.positions, options.features, own_scales=True
    )
    return {'models': sheet}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, run the model, draw the pictures."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    written = []
    with reported_by(parser):
        others = [(config, Path(checkpoint)) for config, checkpoint in options.beside]
        check_files([options.checkpoint, *(file for _, file in others), *options.images])
        images = dict(zip(options.images, read_inputs(options), strict=True))
        check_names(options.images, options.out_dir)
        pairs = [(options.config, options.checkpoint), *others]
        models = [(config, read_model(config, file, options)) for config, file in pairs]
        for path, image in track(images.items(), 'Images', transient=True):
            if others:
                figures = draw_beside(models, image, options)
            else:
                figures = draw(models[0][1], image, options)
            options.out_dir.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                out = options.out_dir / f'{path.stem}_{name}.png'
                write_atomically(out, figure.savefig)
                written.append(out)
    sys.stdout.writelines(f'{out}\n' for out in written)
