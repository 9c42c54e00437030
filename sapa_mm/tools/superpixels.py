"""Draw the superpixels that a clustering backbone finds in images, at every level.

  %(prog)s CONFIG CHECKPOINT image.jpg another.jpg --out superpixels.png

Each row of the picture is an image, alone and under the boundaries of the clusters of every level,
fine to coarse. CONFIG is a segmentor of mmseg whose backbone is HCResNet.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track
from torch import nn

from ..visualization import draw_superpixels
from .arguments import picture, usable_device
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
    add('config', metavar='CONFIG', help="the segmentor's config")
    add('checkpoint', type=Path, metavar='CHECKPOINT', help='its weights')
    add('images', type=Path, nargs='+', metavar='IMAGE', help='image files')
    add('--out', type=picture, default=Path('superpixels.png'), help='picture (%(default)s)')
    add('--device', type=usable_device, default='cpu', help='where to predict (%(default)s)')
    return parser


def read_model(options: argparse.Namespace) -> nn.Module:
    """Build the segmentor with its weights; its predictions hold the superpixels.

    Raises:
        ToolError: The config is not one of a segmentor that clusters, or the weights do not fit.
    """
    cfg = read_config(options.config)
    if cfg.model.get('type') not in ('EncoderDecoder', 'SuperpixelEncoderDecoder'):
        raise ToolError(f'CONFIG: expected an EncoderDecoder of mmseg, got {cfg.model.get("type")}')
    cfg.model.type = 'SuperpixelEncoderDecoder'
    model = load_model(cfg, options.checkpoint, options.device)
    levels = getattr(model.backbone, 'levels', None)
    if not levels:
        got = f'{type(model.backbone).__name__}, levels={levels}'
        raise ToolError(f'CONFIG: expected HCResNet with levels of at least 1, got {got}')
    return model


def find_superpixels(model: nn.Module, image: np.ndarray) -> dict[int, np.ndarray]:
    """Return the superpixels of an image (H, W, 3), BGR, by the stride of their level."""
    found = predict(model, image).pred_superpixels
    return dict(zip(found.strides, found.data.cpu().numpy(), strict=True))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, find the superpixels, draw the picture."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    with reported_by(parser):
        check_files([options.checkpoint, *options.images])
        images = read_images(options.images)
        model = read_model(options)
    superpixels = [
        find_superpixels(model, image) for image in track(images, 'Images', transient=True)
    ]
    pictures = [image[..., ::-1] for image in images]
    write_atomically(options.out, lambda part: draw_superpixels(part, pictures, superpixels))
    sys.stdout.write(f'{options.out}\n')
