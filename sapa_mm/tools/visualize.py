"""Draw what every upsampler of a trained model does to images.

  %(prog)s CONFIG CHECKPOINT image.jpg another.jpg --steps c4_c3 c2_c1

For each image and upsampling step a picture, IMAGE_STEP.png: the image, the encoder feature that
guides, the decoder feature, what it is upsampled to, the same by bilinear interpolation, a
segmentor's prediction, and the kernels: the weight that every pixel gives to a position of its
window, as a map. IMAGE_steps.png has all steps of an image on one sheet. CONFIG is a segmentor of
mmseg or a detector of mmdet with upsamplers; a segmentor predicts whole images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from rich.progress import track
from torch import nn

import sapa_mm  # noqa: F401  registers what the config names
from sapa_mm.visualization import (
    draw_upsampling,
    draw_upsampling_steps,
    input_image,
    outline_prediction,
    record_upsampling,
    select_upsamplers,
)
from sapa_mm.visualization.upsampling import FEATURES, check_positions

from .arguments import usable_device
from .configs import read_config, reason
from .errors import ToolError
from .output import write_atomically


def load(cfg: Config, checkpoint: Path, device: torch.device) -> nn.Module:
    """Build the config's model with the checkpoint's weights."""
    if cfg.default_scope == 'mmseg':
        from mmseg.apis import init_model
    else:
        from mmdet.apis import init_detector as init_model
    return init_model(cfg, str(checkpoint), device=device)


def predict(model: nn.Module, image: np.ndarray) -> BaseDataElement:
    """Run the model on an image (H, W, 3), BGR, as its config says."""
    if model.cfg.default_scope == 'mmseg':
        from mmseg.apis import inference_model as run
    else:
        from mmdet.apis import inference_detector as run
    return run(model, image)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, run the model, draw the pictures."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG', help="the model's config")
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='its weights')
    parser.add_argument('images', type=Path, nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument(
        '--out-dir',
        type=Path,
        default=Path('visualizations'),
        metavar='FOLDER',
        help='for the pictures (%(default)s)',
    )
    parser.add_argument(
        '--device', type=usable_device, default='cpu', help='where to predict (%(default)s)'
    )
    parser.add_argument(
        '--steps', nargs='+', metavar='STEP', help='such as c4_c3 (default: all of the model)'
    )
    parser.add_argument(
        '--position',
        dest='positions',
        action='append',
        nargs=2,
        type=int,
        metavar=('DY', 'DX'),
        help='position of the window whose weights are shown, in rows and columns from its centre; '
        'can be repeated (default: the centre and its four neighbours)',
    )
    parser.add_argument(
        '--features',
        choices=FEATURES,
        default='pca',
        help='how features become colours: their first principal components, or their first three '
        'channels (%(default)s)',
    )
    options = parser.parse_args(argv)
    for path in (options.checkpoint, *options.images):
        if not path.is_file():
            parser.error(f'{path}: no such file')
    images = {path: mmcv.imread(path) for path in options.images}
    for path, image in images.items():
        if image is None:
            parser.error(f'{path}: expected an image')
    stems = [path.stem for path in options.images]
    for stem in stems:
        if stems.count(stem) > 1:
            parser.error(f'IMAGE: expected names that differ, got {stem} twice')
    folder = options.out_dir
    for path in (folder, *folder.parents):
        if path.is_file():
            parser.error(f'--out-dir: expected a folder, got the file {path}')
    try:
        cfg = read_config(options.config)
    except ToolError as error:
        parser.error(str(error))
    try:
        model = load(cfg, options.checkpoint, options.device)
    except Exception as error:  # of whatever kind: model and weights are the user's
        parser.error(f'{options.checkpoint} does not fit {options.config}: {reason(error)}')
    try:
        select_upsamplers(model, options.steps)
    except ValueError as error:
        parser.error(f'CONFIG: {options.config}: {error}')

    written = []
    for path, image in track(images.items(), 'Images', transient=True):
        with record_upsampling(model, options.steps) as recording:
            sample = predict(model, image)
        steps = list(recording.steps.values())
        if not steps:
            parser.error(f'CONFIG: {options.config}: none of the steps runs when it predicts')
        try:
            for step in steps:
                check_positions(options.positions, step)
        except ValueError as error:
            parser.error(f'--{error}')
        seen = input_image(recording.inputs, model.data_preprocessor)
        drawn = (seen, outline_prediction(seen, sample), options.positions, options.features)
        figures = {step.name: draw_upsampling(step, *drawn) for step in steps}
        figures['steps'] = draw_upsampling_steps(steps, *drawn)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            out = folder / f'{path.stem}_{name}.png'
            write_atomically(out, figure.savefig)
            written.append(out)
    sys.stdout.writelines(f'{out}\n' for out in written)
