"""Cut a foreground out of an image, given its trimap.

  %(prog)s image.jpg trimap.png -o alpha.png --cutout cutout.png --picture picture.png
  %(prog)s image.jpg trimap.png -o alpha.png --composite new.jpg --background '#00b140'
  %(prog)s images trimaps --config CONFIG --checkpoint FILE -o alphas --cutout cutouts

A trimap is 0 where the image is background, 255 where it is foreground, and 128 where that is
wanted; alpha is an 8-bit PNG of the image's size. IMAGE and TRIMAP may be folders, whose files
belong together by their names without suffix; then -o, --cutout and --composite are folders too,
and an image that fails does not stop the others.

No trained weights are published with this project. The default network is a tiny one, which its
own toy data trains in minutes: it shows how this works and is not for real pictures.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from rich.progress import track

from .arguments import picture, positive, usable_device
from .configs import find_config, is_matting, read_config, reason, type_name
from .errors import ToolError, reported_by
from .inference import check_files, load_model
from .output import write_atomically, write_bytes

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config
    from mmengine.model import BaseModel

DEFAULT = 'sapa_mm::matting/matting-tiny_sapa-b_1xb8-400_toy-96x96.py'
TOY_DATA = 'sapa-mm toy-data --out data/toy --layouts matting'
# What takes more is told before it runs.
LARGE = 2**30
# So many names are listed at most.
LISTED = 5


class Job(NamedTuple):
    """A `Job` is an image with its trimap, and the files to write of it."""

    image: Path
    trimap: Path
    alpha: Path
    cutout: Path | None
    composite: Path | None


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('image', type=Path, metavar='IMAGE', help='image file, or a folder of them')
    add('trimap', type=Path, metavar='TRIMAP', help='its trimap, or a folder of them')
    add('--config', help="the matting network's config (default: the tiny one with SAPA-B)")
    add(
        '--checkpoint',
        type=Path,
        metavar='FILE',
        help="its weights (default: the latest in work_dirs/ and the config's name)",
    )
    add('-o', '--out', type=Path, required=True, metavar='FILE', help='alpha, a .png file')
    add(
        '--cutout',
        type=Path,
        metavar='FILE',
        help='the foreground in its own colours and transparency, a .png file',
    )
    add('--composite', type=Path, metavar='FILE', help='the foreground on --background')
    add(
        '--background',
        metavar='COLOUR_OR_IMAGE',
        help='a colour as matplotlib names it, such as white or #00b140, or an image file, which '
        'is scaled to cover the image and cropped around its centre',
    )
    add(
        '--picture',
        type=picture,
        metavar='FILE',
        help='image, trimap and alpha side by side, with a zoom (of a single image)',
    )
    add(
        '--max-size',
        type=positive,
        metavar='N',
        help='reduce the longer side to N pixels for the network: it takes less memory, and fine '
        'detail is lost',
    )
    add('--device', type=usable_device, default='cpu', help='where to predict (%(default)s)')
    return parser


def tell(message: str) -> None:
    """Print what is no result."""
    sys.stderr.write(f'{message}\n')


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn what is wrong with a user's file into a ToolError."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise ToolError(str(error)) from error


def plan(options: argparse.Namespace) -> list[Job]:
    """Find the images with their trimaps, and what to write of them.

    Raises:
        ToolError: Options that do not go together, missing trimaps, or files that cannot be made.
    """
    if (options.composite is None) != (options.background is None):
        given, other = ('--composite', '--background')
        if options.composite is None:
            given, other = other, given
        raise ToolError(f'{given}: expected {other} with it, got none')
    for path in (options.image, options.trimap):
        if not path.exists():
            raise ToolError(f'{path}: no such file or folder')
    if options.image.is_dir() != options.trimap.is_dir():
        raise ToolError(
            f'IMAGE, TRIMAP: expected two files or two folders, got {options.image} and '
            f'{options.trimap}'
        )
    jobs = plan_folder(options) if options.image.is_dir() else [plan_image(options)]
    return jobs


def wanted(options: argparse.Namespace) -> dict[str, Path]:
    """Return the files or folders that are written, but for the picture, by their options."""
    named = {'-o': options.out, '--cutout': options.cutout, '--composite': options.composite}
    return {option: path for option, path in named.items() if path is not None}


def check_apart(paths: dict[str, Path]) -> None:
    """Check that files, or folders, differ.

    Raises:
        ToolError: Two are the same.
    """
    seen: dict[Path, str] = {}
    for option, path in paths.items():
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise ToolError(f'{option}: expected another path than that of {other}, got {path}')


def plan_image(options: argparse.Namespace) -> Job:
    """Plan what is written of a single image; see `plan`."""
    from ..matting.files import SUFFIXES

    for option, path in wanted(options).items():
        suffixes = SUFFIXES if option == '--composite' else ('.png',)
        if not path.parent.is_dir() or path.is_dir():
            raise ToolError(f'{option}: expected a file in an existing folder, got {path}')
        if path.suffix.lower() not in suffixes:
            raise ToolError(
                f'{option}: expected a file that ends in {" or ".join(suffixes)}, got {path}'
            )
    pictures = {} if options.picture is None else {'--picture': options.picture}
    check_apart({'IMAGE': options.image, 'TRIMAP': options.trimap, **wanted(options), **pictures})
    return Job(options.image, options.trimap, options.out, options.cutout, options.composite)


def plan_folder(options: argparse.Namespace) -> list[Job]:
    """Plan what is written of a folder of images; see `plan`."""
    from ..matting.files import images_by_stem

    if options.picture is not None:
        raise ToolError(f'--picture: expected a single image, got the folder {options.image}')
    for option, path in wanted(options).items():
        if not path.parent.is_dir() or path.is_file():
            raise ToolError(f'{option}: expected a folder in an existing one, got {path}')
    check_apart({'IMAGE': options.image, 'TRIMAP': options.trimap, **wanted(options)})
    with told():
        images = images_by_stem(options.image, 'IMAGE')
        trimaps = images_by_stem(options.trimap, 'TRIMAP')
    lacking = [path for stem, path in images.items() if stem not in trimaps]
    if lacking:
        more = f' and {len(lacking) - LISTED} more' if len(lacking) > LISTED else ''
        raise ToolError(
            f'TRIMAP: expected a file of the same name in {options.trimap} for every image, got '
            f'none for {", ".join(lacking[:LISTED])}{more}'
        )

    def below(folder: Path | None, stem: str) -> Path | None:
        return None if folder is None else folder / f'{stem}.png'

    return [
        Job(
            Path(image),
            Path(trimaps[stem]),
            options.out / f'{stem}.png',
            below(options.cutout, stem),
            below(options.composite, stem),
        )
        for stem, image in images.items()
    ]


def find_checkpoint(config: str, cfg: 'Config') -> Path:
    """Find the latest checkpoint that training a config left in its default folder.

    Args:
        config: What the user calls the config.
        cfg: The config.

    Raises:
        ToolError: There is none; the message has the commands that make one.
    """
    folder = Path('work_dirs', find_config(config).stem)
    record = folder / 'last_checkpoint'
    if record.is_file():
        latest = Path(record.read_text(encoding='utf-8').strip())
        # The folder may have been moved since.
        for path in (latest, folder / latest.name):
            if path.is_file():
                return path
    commands = [f'sapa-mm train {config}']
    root = cfg.get('data_root', '')
    if '_toy-' in folder.name and not Path(root).is_dir():
        commands.insert(0, TOY_DATA)
    raise ToolError(
        f'--checkpoint: expected one, as there is none in {folder}, and no trained weights are '
        f'published with this project; to train: {" && ".join(commands)}'
    )


def read_model(options: argparse.Namespace) -> 'BaseModel':
    """Build the network with its weights.

    Raises:
        ToolError: A config of another model, no checkpoint, or one that does not fit.
    """
    config = options.config or DEFAULT
    cfg = read_config(config)
    if not is_matting(cfg):
        raise ToolError(f'--config: expected a GuidedMattingNet, got {type_name(cfg.model)}')
    checkpoint = options.checkpoint or find_checkpoint(config, cfg)
    check_files([checkpoint])
    if options.config is None:
        tell(
            'The default network is a tiny one, trained on toy data; it is not for real pictures: '
            'pass --config and --checkpoint for those.'
        )
    return load_model(cfg, checkpoint, options.device)


def read_background(text: str) -> np.ndarray:
    """Read a background, of which a colour is one pixel: (H, W, 3), uint8, BGR.

    Raises:
        ToolError: Neither a colour nor an image.
    """
    from matplotlib.colors import to_rgba

    from ..matting import read_image

    if Path(text).is_file():
        with told():
            return read_image(text)
    try:
        *rgb, opacity = to_rgba(text)
    except ValueError:
        opacity = 0
    if opacity != 1:
        raise ToolError(
            '--background: expected a colour without transparency, such as white or #00b140, or '
            f'the file of an image, got {text}'
        )
    return np.rint([[[255 * value for value in reversed(rgb)]]]).astype(np.uint8)


def read_pair(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Read an image (H, W, 3), BGR, and its trimap (H, W).

    Raises:
        ToolError: They are no image and trimap, or do not go together.
    """
    from ..matting.files import check_same_size, check_unknown, read_image, read_trimap

    with told():
        image, trimap = read_image(job.image), read_trimap(job.trimap)
        check_same_size(**{str(job.image): image, str(job.trimap): trimap})
        check_unknown(trimap, str(job.trimap))
    return image, trimap


def refuse(
    model: 'BaseModel', size: tuple[int, int], memory: int, device: 'torch.device', what: str
) -> ToolError:
    """Make the error for an image that does not do with the memory of a device, with remedies."""
    from .memory import fitting_side

    side = fitting_side(model, size, memory)
    ways = ['pass --device cpu'] if device.type == 'cuda' else []
    ways += [f'pass --max-size {side}, which loses fine detail'] if side else []
    return ToolError(f'{what}: {" or ".join(ways) or "free some"}')


def find_alpha(
    model: 'BaseModel', job: Job, image: np.ndarray, trimap: np.ndarray, options: argparse.Namespace
) -> np.ndarray:
    """Say what memory a large image takes, and predict its alpha.

    Args:
        model: The network.
        job: The files.
        image: (H, W, 3), uint8, BGR.
        trimap: (H, W), uint8.
        options: The options.

    Returns:
        Alpha, (H, W), uint8.

    Raises:
        ToolError: It takes more memory than is free, or turns out to.
    """
    from ..matting import predict_alpha, predict_reduced, reduced_size
    from .memory import GIB, estimate_memory, free_memory

    height, width = trimap.shape
    size = (height, width)
    if options.max_size is not None:
        size = reduced_size(size, options.max_size)
    needed, free = estimate_memory(model, size), free_memory(options.device)
    what = f'{job.image}: about {needed / GIB:.1f} GiB of memory for {size[0]} x {size[1]}'
    if needed > free:
        what = f'{what}, and {free / GIB:.1f} GiB are free on {options.device}'
        raise refuse(model, size, free, options.device, what)
    if needed > LARGE:
        tell(what)
    try:
        if size == (height, width):
            return predict_alpha(model, image, trimap).pred_alpha.data[0].cpu().numpy()
        tell(
            f'{job.image}: the network sees {size[0]} x {size[1]} of {height} x {width} '
            f'(--max-size {options.max_size}), so fine detail is lost'
        )
        return predict_reduced(model, image, trimap, options.max_size)
    except RuntimeError as error:
        if 'memory' not in str(error):
            raise
        raise refuse(model, size, needed // 2, options.device, f'{what} were too much') from error


def encode(path: Path, image: np.ndarray) -> bytes:
    """Encode an image, (H, W) or BGR or BGRA, in the format of a file's suffix."""
    done, data = cv2.imencode(path.suffix, image)
    if not done:
        raise ToolError(f'{path}: OpenCV cannot write an image of {image.shape}')
    return data.tobytes()


def matte(
    model: 'BaseModel',
    job: Job,
    pair: tuple[np.ndarray, np.ndarray],
    background: np.ndarray | None,
    options: argparse.Namespace,
) -> list[Path]:
    """Predict alpha of an image, and write what is wanted when all of it is there.

    Args:
        model: The network.
        job: The files.
        pair: The image and its trimap; see `read_pair`.
        background: For the composite; see `read_background`.
        options: The options.

    Returns:
        The files that were written.

    Raises:
        ToolError: It takes more memory than there is.
    """
    from ..matting import compose, estimate_foreground

    image, trimap = pair
    alpha = find_alpha(model, job, image, trimap, options)
    files = {job.alpha: encode(job.alpha, alpha)}
    if job.cutout is not None or job.composite is not None:
        foreground = estimate_foreground(image, alpha)
        if job.cutout is not None:
            files[job.cutout] = encode(job.cutout, np.dstack([foreground, alpha]))
        if job.composite is not None:
            assert background is not None
            files[job.composite] = encode(job.composite, compose(foreground, alpha, background))
    for path, data in files.items():
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, data)
    if options.picture is None:
        return list(files)
    from ..visualization.matting import draw_mattes

    shown = ([image[..., ::-1]], [trimap], {'prediction': [alpha]})
    write_atomically(options.picture, lambda part: draw_mattes(part, *shown))
    return [*files, options.picture]


def matte_all(
    model: 'BaseModel',
    jobs: Sequence[Job],
    background: np.ndarray | None,
    options: argparse.Namespace,
) -> int:
    """Go through a folder, and say which images fail.

    Returns:
        How many failed.
    """
    failed = 0
    for job in track(jobs, 'Images', transient=True):
        try:
            matte(model, job, read_pair(job), background, options)
        except Exception as error:  # of whatever kind: the other images go on
            why = str(error) if isinstance(error, ToolError) else reason(error)
            tell(f'{job.image} failed: {why}')
            failed += 1
    return failed


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the arguments, cut the foregrounds out.

    Returns:
        Exit status: 1 if an image of a folder failed.
    """
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    with reported_by(parser):
        jobs = plan(options)
        background = None if options.background is None else read_background(options.background)
        if options.image.is_dir():
            model = read_model(options)
            failed = matte_all(model, jobs, background, options)
            for folder in wanted(options).values():
                sys.stdout.write(f'{folder}\n')
            if failed:
                tell(f'{failed} of {len(jobs)} images failed')
            return 1 if failed else 0
        (job,) = jobs
        pair = read_pair(job)
        written = matte(read_model(options), job, pair, background, options)
    sys.stdout.writelines(f'{path}\n' for path in written)
    return 0
