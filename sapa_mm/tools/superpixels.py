"""Draw the superpixels that a clustering backbone finds in images, at every level.

  %(prog)s CONFIG CHECKPOINT image.jpg another.jpg --out superpixels.png

Each row of the picture is an image, alone and under the boundaries of the clusters of every level,
fine to coarse. CONFIG is a segmentor of mmseg whose backbone is HCResNet.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mmcv
from mmseg.apis import inference_model, init_model
from rich.progress import track

import sapa_mm  # noqa: F401  registers what the config names
from sapa_mm.visualization import draw_superpixels

from .arguments import picture, usable_device
from .configs import read_config, reason
from .errors import ToolError
from .output import write_atomically


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, find the superpixels, draw the picture."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG', help="the segmentor's config")
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='its weights')
    parser.add_argument('images', type=Path, nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument(
        '--out', type=picture, default=Path('superpixels.png'), help='picture (%(default)s)'
    )
    parser.add_argument(
        '--device', type=usable_device, default='cpu', help='where to predict (%(default)s)'
    )
    options = parser.parse_args(argv)
    for path in (options.checkpoint, *options.images):
        if not path.is_file():
            parser.error(f'{path}: no such file')
    images = [mmcv.imread(path) for path in options.images]
    for path, image in zip(options.images, images, strict=True):
        if image is None:
            parser.error(f'{path}: expected an image')
    try:
        cfg = read_config(options.config)
    except ToolError as error:
        parser.error(str(error))
    if cfg.model.get('type') not in ('EncoderDecoder', 'SuperpixelEncoderDecoder'):
        parser.error(f'CONFIG: expected an EncoderDecoder of mmseg, got {cfg.model.get("type")}')
    # Whose predictions hold the superpixels.
    cfg.model.type = 'SuperpixelEncoderDecoder'
    try:
        model = init_model(cfg, str(options.checkpoint), device=options.device)
    except Exception as error:  # of whatever kind: model and weights are the user's
        parser.error(f'{options.checkpoint} does not fit {options.config}: {reason(error)}')
    if not getattr(model.backbone, 'levels', 0):
        got = f'{type(model.backbone).__name__}, levels={getattr(model.backbone, "levels", None)}'
        parser.error(f'CONFIG: expected HCResNet with levels of at least 1, got {got}')

    superpixels = []
    for image in track(images, 'Images', transient=True):
        found = inference_model(model, image).pred_superpixels
        superpixels.append(dict(zip(found.strides, found.data.cpu().numpy(), strict=True)))
    pictures = [image[..., ::-1] for image in images]
    write_atomically(options.out, lambda part: draw_superpixels(part, pictures, superpixels))
    sys.stdout.write(f'{options.out}\n')
