"""Merge foregrounds with backgrounds to the test set of Composition-1k, or to one like it.

  %(prog)s FG ALPHA BG --out data/composition1k/Test_set --fg-names fg.txt --bg-names bg.txt

Foreground i is put on the backgrounds 20 i to 20 i + 19, in the order of the names. The published
figures are of the lists of names that come with Adobe's data; without them names are sorted, and
figures do not compare with those. OUT/merged gets NAME_0.png to NAME_19.png of every foreground,
OUT/alpha its alpha. Trimaps come with the data; they belong to OUT/trimaps.

As in the published script, a background that is smaller than the foreground is enlarged bicubically
until it covers it, its top left corner is taken, and colours are rounded down.
"""

import argparse
import contextlib
import functools
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from ..matting.files import images_by_stem, list_images, read_foreground
from .arguments import positive
from .errors import ToolError, reported_by
from .output import write_atomically


class Foreground(NamedTuple):
    """A foreground with what it is put on.

    Attributes:
        name: Its file's name without the suffix.
        path: Its file.
        alpha: The file of its alpha.
        backgrounds: Files of its backgrounds, in order.
    """

    name: str
    path: str
    alpha: str
    backgrounds: list[str]

    @property
    def merged(self) -> list[str]:
        """Names of the files that are written, one for each of the backgrounds."""
        return [f'{self.name}_{k}.png' for k in range(len(self.backgrounds))]


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('fg', type=Path, metavar='FG', help='folder of the foregrounds')
    add('alpha', type=Path, metavar='ALPHA', help='folder of their alphas, of the same names')
    add('bg', type=Path, metavar='BG', help='folder of the backgrounds')
    add('--out', type=Path, required=True, help='folder to write, made if it is not there')
    add(
        '--per-foreground',
        type=positive,
        default=20,
        metavar='N',
        help='backgrounds a foreground (%(default)s)',
    )
    for key, what in (('fg', 'foregrounds'), ('bg', 'backgrounds')):
        add(
            f'--{key}-names',
            type=Path,
            metavar='FILE',
            help=f'text file with a name a line, with or without the suffix: which {what}, in '
            'which order (default: all, sorted)',
        )
    add('--force', action='store_true', help='replace results of the same names')
    return parser


def compose(foreground: np.ndarray, alpha: np.ndarray, background: Image.Image) -> Image.Image:
    """Put a foreground on a background as the published script does.

    Args:
        foreground: F, (H, W, 3), uint8, RGB.
        alpha: (H, W), uint8, in units of 1/255.
        background: B, RGB, of any size. If it is narrower or lower than F, both its sides are
            multiplied by the larger of the two ratios and rounded up, bicubically. The (H, W)
            pixels at the top left are taken.

    Returns:
        alpha F + (1 - alpha) B, rounded down.
    """
    height, width = alpha.shape
    ratio = max(width / background.width, height / background.height)
    if ratio > 1:
        size = math.ceil(background.width * ratio), math.ceil(background.height * ratio)
        background = background.resize(size, Image.Resampling.BICUBIC)
    behind = np.asarray(background.crop((0, 0, width, height)))
    # The script computes in double precision, which rounding down makes visible.
    share = alpha[..., None] / 255
    return Image.fromarray((share * foreground + (1 - share) * behind).astype(np.uint8))


def read_names(path: Path) -> list[str]:
    """Read a file of names; empty lines do not count.

    Raises:
        ToolError: There is no such file, or no name in it.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding='utf-8').splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f'{path}: expected a text file of names: {error}') from error
    if not any(names):
        raise ToolError(f'{path}: expected a name a line, got none')
    return [name for name in names if name]


def choose(folder: Path, argument: str, names: Path | None) -> list[str]:
    """List the images of a folder in the order of a file of names, or sorted.

    Args:
        folder: The folder.
        argument: What the parser calls it, for messages.
        names: The file, or None.

    Returns:
        The names of the images' files.

    Raises:
        ToolError: The file cannot be read or names something that is not there, or not once.
    """
    files = list_images(folder, argument)
    if names is None:
        return files
    matches: dict[str, list[str]] = {}
    for file in files:
        for name in (file, os.path.splitext(file)[0]):
            matches.setdefault(name, []).append(file)
    chosen = []
    for name in read_names(names):
        found = matches.get(name, [])
        if len(found) != 1:
            got = ' and '.join(found) or 'none'
            raise ToolError(f"{names}: expected one image '{name}' in '{folder}', got {got}")
        chosen += found
    return chosen


def plan(options: argparse.Namespace) -> list[Foreground]:
    """Find out which foreground is put on which backgrounds.

    Raises:
        ToolError: Files or names are missing, there are too few backgrounds, or merged images
            could not be told from each other's.
    """
    try:
        files = choose(options.fg, 'FG', options.fg_names)
        backgrounds = choose(options.bg, 'BG', options.bg_names)
        stems = images_by_stem(options.fg, 'FG')
        alphas = images_by_stem(options.alpha, 'ALPHA')
    except (OSError, ValueError) as error:
        raise ToolError(str(error)) from error
    names = [os.path.splitext(file)[0] for file in files]
    number = options.per_foreground
    missing = next((name for name in names if name not in alphas), None)
    if missing is not None:
        raise ToolError(
            f"ALPHA: expected an alpha '{missing}' (.png or another suffix) for "
            f"'{stems[missing]}', got none in '{options.alpha}'"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ToolError(f"{options.fg_names}: expected every name once, got '{twice}' again")
    if len(backgrounds) < number * len(names):
        raise ToolError(
            f'BG: expected at least {number * len(names):,} backgrounds, {number} for each of '
            f'{len(names):,} foregrounds, got {len(backgrounds):,}; --per-foreground takes fewer'
        )
    for name in names:
        shorter, _, k = name.rpartition('_')
        if shorter in names and k.isdecimal() and int(k) < number:
            raise ToolError(
                f"FG: expected names that are no other foreground's with a number, got '{name}' "
                f"and '{shorter}', whose alphas could be taken for each other; rename one"
            )
    return [
        Foreground(
            name,
            stems[name],
            alphas[name],
            [os.path.join(options.bg, b) for b in backgrounds[i * number : (i + 1) * number]],
        )
        for i, name in enumerate(names)
    ]


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Open a background; its pixels are read when they are wanted.

    Raises:
        ToolError: It is no image, one of more than 8 bits a channel, or damaged.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(('I', 'F')):
                raise ToolError(
                    f"BG: expected 8 bits a channel, got mode {image.mode} in '{path}'; convert it"
                )
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ToolError(f"BG: expected an image, got '{path}': {error}") from error


def check(foregrounds: Sequence[Foreground], targets: Sequence[Path], force: bool) -> None:
    """Check all files before any work.

    Args:
        foregrounds: What is read.
        targets: What is written.
        force: Whether it may be there already.

    Raises:
        ToolError: A file is none that can be merged, sizes differ, or results are there.
    """
    there = [target for target in targets if target.exists()]
    if there and not force:
        raise ToolError(
            f"--out: expected none of the results, got {len(there):,}, such as '{there[0]}'; "
            '--force replaces them'
        )
    for item in track(foregrounds, 'Checking', transient=True):
        try:
            read_foreground(item.path, item.alpha)
        except (OSError, ValueError) as error:
            raise ToolError(str(error)) from error
        for path in item.backgrounds:
            with opened(path):
                pass


def merge(foregrounds: Sequence[Foreground]) -> Iterator[tuple[str, Image.Image]]:
    """Merge each foreground with each of its backgrounds.

    Yields:
        The name of the merged image's file, and the image.
    """
    for item in foregrounds:
        fg, alpha = read_foreground(item.path, item.alpha)
        for name, path in zip(item.merged, item.backgrounds, strict=True):
            with opened(path) as image:
                background = image.convert('RGB')
            yield name, compose(fg[..., ::-1], alpha, background)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, check the files, merge them."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    merged, alphas = options.out / 'merged', options.out / 'alpha'
    with reported_by(parser):
        foregrounds = plan(options)
        images = [merged / name for item in foregrounds for name in item.merged]
        copies = {item.alpha: alphas / Path(item.alpha).name for item in foregrounds}
        if alphas.exists() and alphas.samefile(options.alpha):
            copies = {}  # the alphas are where they belong
        check(foregrounds, [*images, *copies.values()], options.force)
        for folder in (merged, alphas):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ToolError(f'--out: expected a folder that can be made: {error}') from error
        for source, target in copies.items():
            write_atomically(target, functools.partial(shutil.copyfile, source))
        for name, image in track(merge(foregrounds), 'Merging', len(images), transient=True):
            write_atomically(merged / name, image.save)
    sys.stdout.write(f'{merged}: {len(images):,} images of {len(foregrounds):,} foregrounds\n')
