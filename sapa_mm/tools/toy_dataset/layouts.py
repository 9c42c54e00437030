"""Writes pictures with depth, and with the segments of several annotators."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from skimage.measure import label

from .scenes import Scene

# Annotators of an image of 'bsds', at least and at most.
ANNOTATORS = (4, 6)
# An annotator leaves out objects below up to this share of the image.
LEFT_OUT = 0.1
# A .mat file begins with so many bytes of text.
HEADER_BYTES = 116


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode a picture; chroma subsampling would smear colours across the boundaries."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=95, subsampling=0)
    return buffer.getvalue()


def write_depth(
    root: Path, split: str, pictures: Iterable[tuple[str, np.ndarray, np.ndarray]]
) -> None:
    """Write names, images and their depth in metres: JPEG, and PNG of 16 bits in millimetres."""
    images = root / 'depth' / 'images' / split
    annotations = root / 'depth' / 'annotations' / split
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for name, image, depth in pictures:
        (images / f'{name}.jpg').write_bytes(encode_jpeg(image))
        millimetres = np.round(depth * 1000).astype(np.uint16)
        Image.fromarray(millimetres).save(annotations / f'{name}.png')


def annotate(rng: np.random.Generator, scene: Scene) -> list[np.ndarray]:
    """Segment a scene as people would, some more finely than others.

    The first has every object and every connected part of the background. The others leave out
    objects below a size of their own, which fall to what is around them.

    Args:
        rng: The only source of chance.
        scene: The scene.

    Returns:
        4 to 6 maps (height, width), uint16, of connected segments from 1.
    """
    areas = [mask.sum() for _, mask in scene.instances]
    maps = []
    for k in range(rng.integers(ANNOTATORS[0], ANNOTATORS[1] + 1)):
        least = 0 if k == 0 else rng.uniform(0, LEFT_OUT) * scene.labels.size
        numbers = scene.labels.astype(np.int32)
        for place, (_, mask) in enumerate(scene.instances):
            numbers[mask] = 256 + place  # classes are below
        for (_, mask), area in zip(scene.instances, areas, strict=True):
            if area < least:
                numbers[mask] = _around(numbers, mask)
        maps.append(label(numbers + 1, connectivity=1).astype(np.uint16))
    return maps


def _around(numbers: np.ndarray, mask: np.ndarray) -> int:
    """Return the commonest number in the rows and columns of a mask, outside of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
    return int(np.bincount(numbers[box][~mask[box]], minlength=1).argmax())


def write_bsds(
    root: Path, split: str, pictures: Iterable[tuple[str, np.ndarray, list[np.ndarray]]]
) -> None:
    """Write names, images and all their annotations as BSDS500 has them: JPEG and .mat files."""
    images = root / 'bsds' / 'images' / split
    annotations = root / 'bsds' / 'groundTruth' / split
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for name, image, maps in pictures:
        (images / f'{name}.jpg').write_bytes(encode_jpeg(image))
        (annotations / f'{name}.mat').write_bytes(_encode_mat(maps))


def _encode_mat(maps: list[np.ndarray]) -> bytes:
    """Encode segmentations as a row of cells, each with a map and its boundaries."""
    cells = np.empty((1, len(maps)), object)
    for k, segments in enumerate(maps):
        cells[0, k] = {'Segmentation': segments, 'Boundaries': _boundaries(segments)}
    buffer = io.BytesIO()
    savemat(buffer, {'groundTruth': cells}, do_compression=True)
    # SciPy writes the time of day here, and equal options have to give equal files.
    header = b'MATLAB 5.0 MAT-file, sapa_mm toy dataset'.ljust(HEADER_BYTES)
    return header + buffer.getvalue()[HEADER_BYTES:]


def _boundaries(segments: np.ndarray) -> np.ndarray:
    """Mark the pixels, uint8 (height, width), whose right or lower neighbour differs."""
    found = np.zeros(segments.shape, np.uint8)
    found[:-1] |= segments[:-1] != segments[1:]
    found[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    return found
