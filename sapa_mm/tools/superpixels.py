"""Draw the superpixels that a model finds in images, at every level; or curves of measures.

  %(prog)s CONFIG CHECKPOINT image.jpg another.jpg --out superpixels.png
  %(prog)s --curve --slic --model SSN CONFIG CHECKPOINT --data-root data/bsds500

Each row of the first's picture is an image, alone and under the boundaries of the superpixels of
every level. CONFIG is a segmentor of mmseg whose backbone is HCResNet, with the clusters of every
level, fine to coarse; or one that predicts superpixels itself, such as SSN, with one level for each
of the --numbers. With --annotations their leakage is red: pixels that are not of the segment that
most of their superpixel is of.

The second draws accuracy and boundary recall over the number of superpixels, for several models;
%(prog)s --curve --help says what it takes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track
from torch import nn

from ..visualization import draw_superpixels
from .arguments import picture, positive, usable_device
from .configs import read_config, type_name
from .errors import ToolError, reported_by
from .inference import check_files, load_model, predict, read_images
from .output import write_atomically


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', metavar='CONFIG', help="the segmentor's config")
    add('checkpoint', type=Path, metavar='CHECKPOINT', help='its weights')
    add('images', type=Path, nargs='+', metavar='IMAGE', help='image files')
    add(
        '--numbers',
        type=positive,
        nargs='+',
        metavar='K',
        help="superpixels that a model such as SSN is asked for (default: the config's)",
    )
    add(
        '--annotations',
        type=Path,
        nargs='+',
        metavar='MAT',
        help='for every image its .mat file of BSDS500, to draw leakage in red',
    )
    add(
        '--annotator',
        type=int,
        default=0,
        metavar='PLACE',
        help='which of the segmentations of a .mat file counts, from 0 (%(default)s)',
    )
    add('--out', type=picture, default=Path('superpixels.png'), help='picture (%(default)s)')
    add('--device', type=usable_device, default='cpu', help='where to predict (%(default)s)')
    return parser


def read_model(options: argparse.Namespace) -> nn.Module:
    """Build the segmentor with its weights; its predictions hold the superpixels.

    Raises:
        ToolError: The config is of an EncoderDecoder that does not cluster, or the weights do not
            fit.
    """
    cfg = read_config(options.config)
    decodes = type_name(cfg.model) in ('EncoderDecoder', 'SuperpixelEncoderDecoder')
    if decodes:
        cfg.model.type = 'SuperpixelEncoderDecoder'
    if options.numbers is not None:
        if decodes:
            raise ToolError(
                '--numbers: expected a model that is asked for them, such as SSN, got '
                f'{type_name(cfg.model)}, whose backbone has its levels'
            )
        cfg.model.test_cfg = {**(cfg.model.get('test_cfg') or {}), 'numbers': options.numbers}
    model = load_model(cfg, options.checkpoint, options.device)
    if decodes and not getattr(model.backbone, 'levels', None):
        levels = getattr(model.backbone, 'levels', None)
        got = f'{type(model.backbone).__name__}, levels={levels}'
        raise ToolError(f'CONFIG: expected HCResNet with levels of at least 1, got {got}')
    return model


def find_superpixels(model: nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the superpixels of an image (H, W, 3), BGR, by the title of their level.

    Raises:
        ToolError: The model predicts none.
    """
    try:
        found = predict(model, image).get('pred_superpixels')
    except ValueError as error:
        raise ToolError(str(error)) from error
    if found is None:
        raise ToolError(
            'CONFIG: expected SSN or an EncoderDecoder with HCResNet, got '
            f'{type(model).__name__}, which predicts no superpixels'
        )
    if 'numbers' in found:
        # Connecting them makes other numbers of them.
        titles = [f'{number} asked for' for number in found.numbers]
    else:
        titles = [f'clusters of stride {stride}' for stride in found.strides]
    return dict(zip(titles, found.data.cpu().numpy(), strict=True))


def read_segments(
    options: argparse.Namespace, images: Sequence[np.ndarray]
) -> list[np.ndarray] | None:
    """Read the segments of each image, where they are asked for.

    Raises:
        ToolError: Files are missing or damaged, or do not fit the images.
    """
    if options.annotations is None:
        return None
    # Not above: other models do without.
    from ..segmentation.bsds import read_segmentations

    if len(options.annotations) != len(images):
        raise ToolError(
            f'--annotations: expected one for each of the {len(images)} images, got '
            f'{len(options.annotations)}'
        )
    check_files(options.annotations)
    segments = []
    for path, image in zip(options.annotations, images, strict=True):
        try:
            maps = read_segmentations(str(path))
        except ValueError as error:
            raise ToolError(str(error)) from error
        if not 0 <= options.annotator < len(maps):
            raise ToolError(
                f'--annotator: expected 0 to {len(maps) - 1} for {path}, got {options.annotator}'
            )
        found = maps[options.annotator]
        if found.shape != image.shape[:2]:
            raise ToolError(
                f"--annotations: expected segments of the image's size, {image.shape[:2]}, got "
                f'{found.shape} in {path}'
            )
        segments.append(found)
    return segments


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, find the superpixels, draw the picture; or the curves."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if '--curve' in arguments:
        # Not above: it needs BSDS500's loaders, and the pictures do not.
        from . import superpixel_curve

        arguments.remove('--curve')
        superpixel_curve.main(arguments, f'{prog or Path(sys.argv[0]).name} --curve')
        return
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    with reported_by(parser):
        check_files([options.checkpoint, *options.images])
        images = read_images(options.images)
        segments = read_segments(options, images)
        model = read_model(options)
        superpixels = [
            find_superpixels(model, image) for image in track(images, 'Images', transient=True)
        ]
    pictures = [image[..., ::-1] for image in images]
    write_atomically(
        options.out, lambda part: draw_superpixels(part, pictures, superpixels, segments)
    )
    sys.stdout.write(f'{options.out}\n')
