"""Make a small dataset for segmentation, detection, depth or matting in which boundaries matter.

Spoked wheels, torn kites, thin chairs and leafy plants, filled with photographs' textures, stand
before cluttered backgrounds. The same scenes are written in the layout of ADE20K, for
mmsegmentation, and in that of COCO, for mmdetection. The layout "depth" has rooms with such objects
and their depth, as mmsegmentation has NYU Depth v2, and one real picture with measured depth,
stereo_motorcycle of scikit-image. The layout "bsds" has the scenes with the segments of several
annotators each, as BSDS500 has them. The layout "matting" has hairs, nets, leaves, horses and smoke
with their alpha, composited over photographs, as Composition-1k has them. No download is needed.
"""

import argparse
import contextlib
import dataclasses
import glob
import json
import math
import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...ops.checks import check_int, check_positive_int
from ..output import write_json, write_text
from .depth_scenes import DepthScene, motorcycle, render_depth_scene
from .layouts import annotate, encode_jpeg, write_bsds, write_depth
from .mattes import BACKGROUNDS_PER_TEST, write_matting
from .scenes import BACKGROUNDS, OBJECTS, Scene, render_scene
from .shapes import mask_to_polygons
from .stopping import StopRequested, StopSignals

if sys.platform != 'win32':  # Windows has no such locks: leftovers of a killed run stay there
    import fcntl

MARKER = 'toy_dataset.json'
SEGMENTATION_LAYOUTS = ('ade', 'coco')
LAYOUTS = (*SEGMENTATION_LAYOUTS, 'depth', 'bsds', 'matting')
# The framework that reads a layout.
FRAMEWORKS = {
    'ade': 'mmsegmentation',
    'coco': 'mmdetection',
    'depth': 'mmsegmentation, depth',
    'bsds': 'mmsegmentation, superpixels',
    'matting': 'mmengine, matting',
}
SIZES = (64, 2048)
COCO_NAMES = (
    'person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,'
    'stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,'
    'backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,'
    'baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,'
    'bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,'
    'potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,'
    'oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush'
).split(',')
# COCO numbers its 80 classes up to 90.
COCO_IDS = [k for k in range(1, 91) if k not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what to generate.

    Args:
        num_train: Training images, at least 1; of 'matting', foregrounds and backgrounds.
        num_val: Validation images, which the layouts but 'ade' and 'coco' call test, at least 1;
            of 'matting', foregrounds, each of which is put on two backgrounds.
        size: Height and width of the images in pixels, 64 to 2048 each.
        seed: Seed, at least 0.
        layouts: Some of 'ade', 'coco', 'depth', 'bsds' and 'matting'.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a value is out of range.
    """

    num_train: int = 240
    num_val: int = 60
    size: tuple[int, int] = (160, 160)
    seed: int = 0
    layouts: tuple[str, ...] = SEGMENTATION_LAYOUTS

    def __post_init__(self) -> None:
        if len(self.size) != 2:
            raise ValueError(f'size must be a height and a width, got {self.size}')
        check_positive_int('num_train', self.num_train)
        check_positive_int('num_val', self.num_val)
        check_int('seed', self.seed, low=0)
        for side in self.size:
            check_int('size', side, *SIZES)
        unknown = set(self.layouts) - set(LAYOUTS)
        if unknown or not self.layouts:
            raise ValueError(f'layouts must be some of {LAYOUTS}, got {self.layouts}')


@dataclasses.dataclass
class Statistics:
    """Counts what was written.

    Args:
        images: Scenes of 'ade' and 'coco' a split.
        pixels: Their pixels by ADE index.
        instances: Their objects by split and name.
        rooms: Scenes of 'depth' a split.
        depths: The least and the largest depth in the rooms, in metres.
        unknown: Pixels of the rooms whose depth is unknown.
        segments: How many each annotation of 'bsds' has.
        partial: The share of each foreground of 'matting' that is neither opaque nor transparent.
    """

    images: Counter = dataclasses.field(default_factory=Counter)
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    instances: Counter = dataclasses.field(default_factory=Counter)
    rooms: Counter = dataclasses.field(default_factory=Counter)
    depths: tuple[float, float] = (math.inf, 0.0)
    unknown: int = 0
    segments: list[int] = dataclasses.field(default_factory=list)
    partial: list[float] = dataclasses.field(default_factory=list)

    def add(self, split: str, scene: Scene) -> None:
        """Count one scene of the split 'train' or 'val'."""
        self.images[split] += 1
        self.pixels += np.bincount(scene.labels.ravel(), minlength=256)
        self.instances.update((split, name) for name, _ in scene.instances)

    def add_room(self, split: str, scene: DepthScene) -> None:
        """Count one scene with depth of the split 'train' or 'val'."""
        known = scene.depth[scene.depth > 0]
        self.rooms[split] += 1
        self.depths = min(self.depths[0], known.min()), max(self.depths[1], known.max())
        self.unknown += scene.depth.size - known.size


def _coco_annotation(identity: int, image_id: int, name: str, mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corner = (columns[0], rows[0])
    extent = (columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
    return {
        'id': identity,
        'image_id': image_id,
        'category_id': COCO_IDS[COCO_NAMES.index(name)],
        'iscrowd': 0,
        'area': int(mask.sum()),
        'bbox': [float(value) for value in (*corner, *extent)],
        'segmentation': mask_to_polygons(mask),
    }


def _write_split(root: Path, split: str, options: Options, scenes: Iterable[Scene]) -> None:
    """Write the images and annotations of the split 'train' or 'val'."""
    ade_split = {'train': 'training', 'val': 'validation'}[split]
    ade_images = root / 'ade' / 'images' / ade_split
    ade_labels = root / 'ade' / 'annotations' / ade_split
    coco_images = root / 'coco' / f'{split}2017'
    coco_file = root / 'coco' / 'annotations' / f'instances_{split}2017.json'
    if 'ade' in options.layouts:
        ade_images.mkdir(parents=True)
        ade_labels.mkdir(parents=True)
    if 'coco' in options.layouts:
        coco_images.mkdir(parents=True)
        coco_file.parent.mkdir(exist_ok=True)

    height, width = options.size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k, scene in enumerate(scenes, 1):
        encoded = encode_jpeg(scene.image)
        if 'ade' in options.layouts:
            name = f'ADE_{split}_{k:08d}'
            (ade_images / f'{name}.jpg').write_bytes(encoded)
            Image.fromarray(scene.labels).save(ade_labels / f'{name}.png')
        if 'coco' in options.layouts:
            name = f'{k:012d}.jpg'
            (coco_images / name).write_bytes(encoded)
            images.append({'id': k, 'file_name': name, 'height': height, 'width': width})
            for label, mask in scene.instances:
                annotations.append(_coco_annotation(len(annotations) + 1, k, label, mask))
    if 'coco' in options.layouts:
        content = {
            'info': {'description': f'sapa_mm toy dataset, {split}, seed {options.seed}'},
            'licenses': [],
            'images': images,
            'annotations': annotations,
            'categories': [
                {'id': k, 'name': name} for k, name in zip(COCO_IDS, COCO_NAMES, strict=True)
            ],
        }
        write_text(coco_file, json.dumps(content))


def _try_lock(folder: Path, wait: bool = False) -> int | None:
    """Lock a folder; return its descriptor, or None if it is taken or can't be locked."""
    if sys.platform == 'win32':
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs of this tool from changing what lies in the folder."""
    descriptor = _try_lock(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _tidy(out: Path) -> None:
    """Undo what killed runs left: put a half replaced dataset back, remove dead build folders."""
    backup = out.parent / f'.{out.name}.old'
    if backup.exists():
        if out.exists():
            _keep_others(backup, out)
        else:
            backup.rename(out)
    for build in out.parent.glob(f'.{glob.escape(out.name)}.building-*'):
        descriptor = _try_lock(build)  # a live run holds its own
        if descriptor is not None:
            shutil.rmtree(build, ignore_errors=True)
            os.close(descriptor)


def _keep_others(backup: Path, out: Path) -> None:
    """Move the layouts of an older dataset that a newer one lacks to that, and remove the rest."""
    marker = backup / MARKER  # an empty folder has none
    before = json.loads(marker.read_text()) if marker.is_file() else {}
    now = json.loads((out / MARKER).read_text())
    for layout in LAYOUTS:
        if (backup / layout).is_dir() and not (out / layout).exists():
            (backup / layout).rename(out / layout)
            if layout in before:
                now[layout] = before[layout]
    write_json(out / MARKER, now)
    shutil.rmtree(backup, ignore_errors=True)


def _check_out(out: Path, layouts: Sequence[str], force: bool) -> None:
    """Raise FileExistsError if these layouts may not be written in `out`, or replaced there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MARKER).is_file():
        raise FileExistsError(
            f'--out {out} exists and was not made by this tool: remove it or name another folder'
        )
    there = [layout for layout in layouts if (out / layout).exists()]
    if there and not force:
        raise FileExistsError(
            f'--out {out} has {" and ".join(there)}: pass --force to replace that or name another '
            'folder'
        )


@contextlib.contextmanager
def _replacing(out: Path, layouts: Sequence[str], force: bool) -> Iterator[Path]:
    """Give a folder to build in, whose layouts go to `out`, beside others, if all goes well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    build = out.parent / f'.{out.name}.building-{secrets.token_hex(4)}'
    backup = out.parent / f'.{out.name}.old'
    lock = None
    try:
        with _locked(out.parent):
            _tidy(out)
            _check_out(out, layouts, force)
            build.mkdir()
            lock = _try_lock(build)
        yield build
        with _locked(out.parent):
            _check_out(out, layouts, force)
            if out.exists():
                out.rename(backup)
            try:
                build.rename(out)
            except OSError:
                if backup.exists():
                    backup.rename(out)
                raise
            if backup.exists():
                _keep_others(backup, out)
    finally:
        shutil.rmtree(build, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def make_dataset(
    out: str | os.PathLike,
    options: Options,
    force: bool = False,
    check: Callable[[], None] | None = None,
    console: Console | None = None,
) -> Statistics:
    """Generate the dataset.

    It is built in a hidden folder beside `out` and renamed at the end. Whatever goes wrong
    before, nothing new is left and an older dataset stays as it was. Other layouts that are in
    `out` stay there.

    Args:
        out: Folder to make.
        options: What to generate.
        force: Replace a dataset that this tool made before.
        check: Called before every image; what it raises ends the work. Default: nothing.
        console: Where to show progress. Default: standard output.

    Returns:
        What was written.

    Raises:
        FileExistsError: If `out` is not empty, unless it was made by this tool and `force` is
            given.
    """
    out = Path(out).resolve()
    _check_out(out, options.layouts, force)
    counts = Statistics()
    with _replacing(out, options.layouts, force) as build:

        def numbers(
            split: str, what: str, stream: int
        ) -> Iterator[tuple[int, np.random.Generator]]:
            number = options.num_train if split == 'train' else options.num_val
            for k in track(range(number), f'{split} {what}', console=console):
                if check is not None:
                    check()
                yield k, np.random.default_rng([options.seed, stream + (split == 'val'), k])

        def render(split: str) -> Iterator[Scene]:
            for _, rng in numbers(split, 'images', 0):
                scene = render_scene(rng, options.size)
                counts.add(split, scene)
                yield scene

        def render_rooms(split: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
            for k, rng in numbers(split, 'depth images', 2):
                scene = render_depth_scene(rng, options.size)
                counts.add_room(split, scene)
                yield f'scene_{k + 1:05d}', scene.image, scene.depth

        def annotate_scenes(split: str) -> Iterator[tuple[str, np.ndarray, list[np.ndarray]]]:
            for k, rng in numbers(split, 'images of segments', 4):
                scene = render_scene(rng, options.size)
                maps = annotate(rng, scene)
                counts.segments += [int(m.max()) for m in maps]
                yield f'{k + 1:06d}', scene.image, maps

        if set(options.layouts) & set(SEGMENTATION_LAYOUTS):
            for split in ('train', 'val'):
                _write_split(build, split, options, render(split))
        if 'depth' in options.layouts:
            write_depth(build, 'train', render_rooms('train'))
            write_depth(build, 'test', render_rooms('val'))
            write_depth(build, 'motorcycle', [('motorcycle_1', *motorcycle())])
        if 'bsds' in options.layouts:
            write_bsds(build, 'train', annotate_scenes('train'))
            write_bsds(build, 'test', annotate_scenes('val'))
        if 'matting' in options.layouts:
            for split in ('train', 'val'):
                foregrounds = numbers(split, 'foregrounds', 6)
                counts.partial += write_matting(build, split, options.size, foregrounds)
        write_json(build / MARKER, dict.fromkeys(options.layouts, dataclasses.asdict(options)))
    return counts


def print_summary(out: Path, options: Options, counts: Statistics, console: Console) -> None:
    """Print what was written, and the folders to name in configs."""
    if set(options.layouts) & set(SEGMENTATION_LAYOUTS):
        console.print(_class_table(options, counts))
    height, width = options.size
    if 'depth' in options.layouts:
        unknown = 100 * counts.unknown / (counts.rooms.total() * height * width)
        console.print(
            f'{counts.rooms["train"]} training and {counts.rooms["val"]} test images of '
            f'{height}x{width} pixels with depth from {counts.depths[0]:.2f} to '
            f'{counts.depths[1]:.2f} m, {unknown:.1f} % unknown, and stereo_motorcycle',
            highlight=False,
        )
    if 'bsds' in options.layouts:
        console.print(
            f'{options.num_train} training and {options.num_val} test images of '
            f'{height}x{width} pixels with {len(counts.segments)} annotations of '
            f'{min(counts.segments)} to {max(counts.segments)} segments',
            highlight=False,
        )
    if 'matting' in options.layouts:
        merged = BACKGROUNDS_PER_TEST * options.num_val
        console.print(
            f'{options.num_train} training foregrounds and as many backgrounds, {merged} test '
            f'images of {options.num_val} more, {height}x{width} pixels, of which '
            f'{100 * np.mean(counts.partial):.1f} % are neither opaque nor transparent',
            highlight=False,
        )
    for layout, framework in FRAMEWORKS.items():
        if layout in options.layouts:
            line = f"{framework}: data_root='{out / layout}/'"
            console.print(line, soft_wrap=True, markup=False, highlight=False)


def _class_table(options: Options, counts: Statistics) -> Table:
    """Return the classes with their shares of the pixels."""
    shares = 100 * counts.pixels / counts.pixels.sum()
    height, width = options.size
    table = Table(
        title=f'{counts.images["train"]} training and {counts.images["val"]} validation images '
        f'of {height}x{width} pixels'
    )
    for heading in ('ADE20K', 'COCO'):
        table.add_column(heading)
    for heading in ('pixels %', 'objects: train', 'val'):
        table.add_column(heading, justify='right')
    for background in BACKGROUNDS.values():
        name = f'{background.ade_index} {background.ade_name}'
        table.add_row(name, '', f'{shares[background.ade_index]:.2f}', '', '')
    for kind in OBJECTS:
        coco_id = COCO_IDS[COCO_NAMES.index(kind.coco_name)]
        numbers = [str(counts.instances[split, kind.coco_name]) for split in ('train', 'val')]
        table.add_row(
            f'{kind.ade_index} {kind.ade_name}',
            f'{coco_id} {kind.coco_name}',
            f'{shares[kind.ade_index]:.2f}',
            *numbers,
        )
    table.add_row('0 unlabelled', '', f'{shares[0]:.2f}', '', '')
    return table


def parse_args(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> tuple[argparse.Namespace, Options]:
    """Read the command line; invalid options end the program with status 2."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--out', required=True, type=Path, help='folder to make, for example data/toy')
    add('--num-train', type=int, default=240, metavar='N', help='training images (240)')
    add('--num-val', type=int, default=60, metavar='N', help='validation or test images (60)')
    add(
        '--size',
        type=int,
        nargs='+',
        default=[160],
        metavar='PIXELS',
        help=f'height and width, or one number for both, {SIZES[0]} to {SIZES[1]} (160)',
    )
    add(
        '--seed',
        type=int,
        default=0,
        help='equal seeds and options give equal files; more images keep the earlier ones (0)',
    )
    add(
        '--layouts',
        nargs='+',
        choices=LAYOUTS,
        default=SEGMENTATION_LAYOUTS,
        help='what to write (ade and coco)',
    )
    add('--force', action='store_true', help='replace layouts that this tool made in --out')
    args = parser.parse_args(argv)
    size = tuple(args.size * 2 if len(args.size) == 1 else args.size)
    try:
        layouts = tuple(dict.fromkeys(args.layouts))
        options = Options(args.num_train, args.num_val, size, args.seed, layouts)
    except ValueError as error:
        parser.error(str(error))
    return args, options


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the tool and return its exit status."""
    args, options = parse_args(argv, prog)
    name, console = prog or Path(sys.argv[0]).name, Console()
    with StopSignals() as signals:
        try:
            counts = make_dataset(args.out, options, args.force, signals.check, console)
        except OSError as error:
            print(f'{name}: {error}', file=sys.stderr)
            return 1
        except StopRequested as stop:
            print(f'{name}: {stop}: {args.out} is as it was before', file=sys.stderr)
            return 128 + stop.signum
    print_summary(args.out, options, counts, console)
    return 0
