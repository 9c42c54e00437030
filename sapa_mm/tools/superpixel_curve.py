r"""Draw how well superpixels fit the truth over their number, on the test images of BSDS500.

  %(prog)s --data-root data/bsds500 --slic \
      --model SSN CONFIG CHECKPOINT --model HCSSN CONFIG CHECKPOINT \
      --numbers 100 200 300 400 500 600 --out curve.png --json curve.json

Achievable segmentation accuracy (ASA) and both published forms of boundary recall, BR (Stutz et
al.: 4-connected boundaries on both sides, within 0.0025 of the diagonal) and BR-SEAL (that of SEAL
and SSN: on one side, within 1 pixel), are averaged over all pairs of an image and an annotation.
They are drawn over the number of superpixels that came out, averaged likewise. CONFIG is a
segmentor that predicts as many superpixels as it is asked for, such as SSN; --slic is
scikit-image's SLIC.
"""

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS, DefaultScope
from rich.progress import track
from skimage.segmentation import slic

from ..segmentation.bsds import BSDS500Dataset, number_segments, read_segmentations
from ..segmentation.superpixels import MEASURES, mean_measures, superpixel_measures
from ..visualization import draw_superpixel_curves
from .arguments import output_file, picture, positive, usable_device
from .benchmark.report import environment
from .configs import read_config, reason, type_name
from .errors import ToolError, reported_by
from .inference import check_files, load_model, predict, read_images
from .output import markdown_table, write_atomically, write_json

#: Options of scikit-image's SLIC, its defaults; it connects and merges its superpixels itself.
SLIC = dict(
    compactness=10.0,
    max_num_iter=10,
    sigma=0,
    enforce_connectivity=True,
    min_size_factor=0.5,
    max_size_factor=3,
)
SLIC_NAME = 'SLIC'

# It finds superpixels of an image (H, W, 3), uint8, BGR, by the numbers that are asked for.
Find = Callable[[np.ndarray], Mapping[int, np.ndarray]]


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--model',
        nargs=3,
        action='append',
        default=[],
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='a curve of a trained model, any number of times',
    )
    listed = ', '.join(f'{name}={value}' for name, value in SLIC.items())
    add('--slic', action='store_true', help=f"a curve of scikit-image's SLIC with {listed}")
    add(
        '--data-root',
        type=Path,
        metavar='FOLDER',
        help="BSDS500, with images/test and groundTruth/test (default: the first config's test)",
    )
    add(
        '--numbers',
        type=positive,
        nargs='+',
        default=list(range(100, 601, 100)),
        metavar='K',
        help='superpixels to ask for (100 to 600 in steps of 100)',
    )
    add('--images', type=positive, metavar='N', help='the first N images alone (default: all)')
    add('--out', type=picture, default=Path('superpixel_curve.png'), help='picture (%(default)s)')
    add('--json', type=output_file, metavar='FILE', help='the figures, and what they are of')
    add('--device', type=usable_device, default='cpu', help='where models predict (%(default)s)')
    return parser


def parse_arguments(argv: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the options; contradictions end the program with status 2."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    names = [name for name, _, _ in options.model] + [SLIC_NAME] * options.slic
    if not names:
        parser.error('expected a curve to draw: --model, --slic or both')
    if len(set(names)) < len(names):
        parser.error(f'--model: expected a NAME of its own for each curve, got {", ".join(names)}')
    if options.data_root is None and not options.model:
        parser.error('--data-root: expected the folder of BSDS500, as no --model has it')
    options.numbers = sorted(set(options.numbers))
    return options


def list_images(options: argparse.Namespace) -> list[dict]:
    """List the images to measure, each with its ``img_path`` and ``seg_map_path``.

    Raises:
        ToolError: They are missing, or the config's test is of other data.
    """
    try:
        if options.data_root is not None:
            prefix = dict(img_path='images/test', seg_map_path='groundTruth/test')
            dataset = BSDS500Dataset(data_root=str(options.data_root), data_prefix=prefix)
        else:
            cfg = read_config(options.model[0][1])
            test = (cfg.get('test_dataloader') or {}).get('dataset') or {}
            if type_name(test) != BSDS500Dataset.__name__:
                raise ToolError(
                    f'CONFIG: expected a test of {BSDS500Dataset.__name__}, got '
                    f'{type_name(test) or "none"}; --data-root names the data otherwise'
                )
            with DefaultScope.overwrite_default_scope('mmseg'):
                dataset = DATASETS.build({**test, 'pipeline': []})
    except FileNotFoundError as error:
        raise ToolError(str(error)) from error
    count = min(options.images or len(dataset), len(dataset))
    return [dataset.get_data_info(i) for i in range(count)]


def find_by_slic(numbers: Sequence[int]) -> Find:
    """Let scikit-image's SLIC find superpixels."""

    def find(image: np.ndarray) -> dict[int, np.ndarray]:
        rgb = image[..., ::-1]
        return {number: slic(rgb, number, start_label=0, **SLIC) for number in numbers}

    return find


def find_by_model(
    config: str, checkpoint: str, numbers: Sequence[int], device: str
) -> tuple[Find, dict]:
    """Let a trained model find superpixels.

    Returns:
        What finds them, and the model's ``test_cfg``.

    Raises:
        ToolError: The model cannot be loaded, or, when it predicts, it gives other superpixels.
    """
    cfg = read_config(config)
    test_cfg = {**(cfg.model.get('test_cfg') or {}), 'numbers': tuple(numbers)}
    cfg.model.test_cfg = test_cfg
    model = load_model(cfg, checkpoint, device)

    def find(image: np.ndarray) -> dict[int, np.ndarray]:
        predicted = predict(model, image).get('pred_superpixels')
        got = None if predicted is None else tuple(predicted.get('numbers', ()))
        if got != tuple(numbers):
            raise ToolError(
                f'CONFIG: expected a model that predicts superpixels of {tuple(numbers)}, such as '
                f'SSN, got {got or "no such numbers"} from {type(model).__name__}'
            )
        return dict(zip(got, predicted.data.cpu().numpy(), strict=True))

    return find, test_cfg


def measure(
    name: str, find: Find, images: Sequence[Mapping], numbers: Sequence[int]
) -> list[dict[str, float]]:
    """Measure the superpixels of all images.

    Args:
        name: What the progress is called.
        find: Finds superpixels.
        images: Of `list_images`.
        numbers: How many superpixels are asked for.

    Returns:
        For each of the numbers itself, how many 'pairs' of an image and an annotation there are,
        and the means of the `MEASURES`.

    Raises:
        ToolError: An image or its segments are damaged, do not fit each other, or are too small.
    """
    found: dict[int, list[np.ndarray]] = {number: [] for number in numbers}
    for info in track(images, name, transient=True):
        (image,) = read_images([Path(info['img_path'])])
        pixels = image.shape[0] * image.shape[1]
        if max(numbers) > pixels:
            raise ToolError(
                f'--numbers: expected at most {pixels} superpixels, the pixels of '
                f'{info["img_path"]}, got {max(numbers)}'
            )
        try:
            labels = [number_segments(m) for m in read_segmentations(info['seg_map_path'])]
            for number, superpixels in find(image).items():
                found[number].append(superpixel_measures(superpixels, labels))
        except ValueError as error:
            raise ToolError(f'{name}, {info["img_path"]}: {reason(error)}') from error
    return [
        {'number': number, 'pairs': sum(map(len, values)), **mean_measures(values)}
        for number, values in found.items()
    ]


def draw_curves(options: argparse.Namespace, command: str) -> str:
    """Measure all curves, write the picture and the JSON; return a table.

    Raises:
        ToolError: Models or data are missing or do not fit.
    """
    check_files([Path(checkpoint) for _, _, checkpoint in options.model])
    images = list_images(options)
    curves: list[dict] = []
    if options.slic:
        points = measure(SLIC_NAME, find_by_slic(options.numbers), images, options.numbers)
        curves.append({'name': SLIC_NAME, 'options': SLIC, 'points': points})
    for name, config, checkpoint in options.model:
        find, test_cfg = find_by_model(config, checkpoint, options.numbers, options.device)
        points = measure(name, find, images, options.numbers)
        source = {'config': config, 'checkpoint': checkpoint, 'test_cfg': test_cfg}
        curves.append({'name': name, **source, 'points': points})
    if options.json is not None:
        record = {
            'command': command,
            'images': len(images),
            'first_image': images[0]['img_path'],
            'averaged_over': 'all pairs of an image and an annotation',
            'boundary_recall': {'BR': 'stutz', 'BR-SEAL': 'seal'},
            'curves': curves,
            'versions': {
                **environment(options.device),
                'scikit-image': importlib.metadata.version('scikit-image'),
            },
        }
        write_json(options.json, record)
    drawn = {curve['name']: curve['points'] for curve in curves}
    write_atomically(options.out, lambda part: draw_superpixel_curves(part, drawn))
    rows = [
        [name, str(point['number'])]
        + [f'{point[measure]:.{1 if measure == "count" else 4}f}' for measure in MEASURES]
        for name, points in drawn.items()
        for point in points
    ]
    return markdown_table(['curve', 'asked for', *MEASURES], rows, texts=1, pad=True)


def main(argv: Sequence[str], prog: str | None = None) -> None:
    """Parse the arguments, measure, draw the curves."""
    options = parse_arguments(argv, prog)
    command = shlex.join([*(prog or 'superpixels --curve').split(), *argv])
    with reported_by(make_parser(prog)):
        table = draw_curves(options, command)
    sys.stdout.write(f'{table}\n{options.out}\n')
