"""Draws foregrounds whose alpha is known exactly, and composites them over photographs.

Hairs, nets, leaves and horses are polygons, and alpha is the part of a pixel that they cover. Smoke
is noise and nowhere opaque. Alpha is first quantized, then composited, so that the files are
consistent: merged = alpha * foreground + (1 - alpha) * background, rounded.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from .matte_shapes import DRAWINGS, draw_smoke, sample_coverage
from .scenes import WHOLE, Texture, crop_photo, shade_body

# The trimap's value of unknown pixels.
UNKNOWN = 128
# A trimap's opaque and transparent regions are eroded by a disk of this radius in pixels.
EROSION = (2, 5)
# Backgrounds on which every foreground of the test is put.
BACKGROUNDS_PER_TEST = 2


@dataclasses.dataclass(frozen=True)
class Photos:
    """Names photographs in `skimage.data` that the wheel ships.

    Args:
        textures: Those whose light and dark fill the foregrounds, each with the part to crop
            from as `Texture` has it.
        backgrounds: Those that are backgrounds.
    """

    textures: tuple[tuple[str, tuple[float, float, float, float]], ...]
    backgrounds: tuple[str, ...]


# No photograph is in two of these four places.
PHOTOS = {
    'train': Photos(
        (('grass', WHOLE), ('immunohistochemistry', WHOLE)),
        ('astronaut', 'coffee', 'stereo_motorcycle', 'camera', 'brick', 'page'),
    ),
    'val': Photos(
        (('moon', WHOLE), ('retina', (0.25, 0.25, 0.75, 0.75))),
        ('chelsea', 'rocket', 'coins', 'gravel', 'text'),
    ),
}
# Foregrounds take turns in these.
KINDS = (*DRAWINGS, 'smoke')
# These are the mean hue, saturation and value, their half ranges, and the contrast of `Texture`.
COLORS = {
    'hair': ((0.07, 0.5, 0.42), (0.04, 0.3, 0.3), 0.25),
    'skin': ((0.06, 0.42, 0.72), (0.02, 0.12, 0.15), 0.06),
    'cloth': ((0.5, 0.45, 0.55), (0.5, 0.35, 0.3), 0.15),
    'cord': ((0.5, 0.3, 0.6), (0.5, 0.3, 0.38), 0.15),
    'wood': ((0.08, 0.45, 0.4), (0.03, 0.2, 0.18), 0.3),
    'leaf': ((0.24, 0.6, 0.45), (0.14, 0.25, 0.2), 0.3),
    'smoke': ((0.55, 0.06, 0.72), (0.5, 0.05, 0.26), 0.06),
}


@dataclasses.dataclass(frozen=True)
class Matte:
    """Holds a foreground.

    Args:
        foreground: RGB, uint8 (height, width, 3), also where alpha is 0.
        alpha: uint8 (height, width), of which 255 is opaque.
    """

    foreground: np.ndarray
    alpha: np.ndarray


def _texture(rng: np.random.Generator, key: str, split: str, shape: tuple[int, int]) -> np.ndarray:
    """Draw a filling in colours of `COLORS`, about [0, 1], float (height, width, 3)."""
    return Texture(PHOTOS[split].textures, *COLORS[key]).sample(rng, shape)


def _quantize(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def draw_matte(rng: np.random.Generator, kind: str, shape: tuple[int, int], split: str) -> Matte:
    """Draw a foreground.

    Args:
        rng: The only source of chance: equal generators give equal foregrounds.
        kind: One of `KINDS`.
        shape: Height and width in pixels.
        split: 'train' or 'val', which have photographs of their own.

    Returns:
        The foreground. It has opaque pixels, unless it is smoke, and transparent ones.
    """
    if kind == 'smoke':
        opacity = draw_smoke(rng, shape)
        colors = _texture(rng, 'smoke', split, shape)
        return Matte(_quantize(colors), _quantize(opacity))
    choices = DRAWINGS[kind]
    drawing = choices[rng.integers(len(choices))](rng, shape)
    alpha = sample_coverage(drawing.layers, shape)
    colors = _texture(rng, drawing.color, split, shape)
    for key, layers in drawing.parts:
        part = sample_coverage(layers, shape)[..., None]
        colors = colors + part * (_texture(rng, key, split, shape) - colors)
    light = rng.uniform(-1, 1, 2) + (0, -1.2)
    colors = colors * shade_body(alpha, light, 0.03 * min(shape))[..., None]
    return Matte(_quantize(colors), _quantize(alpha))


def draw_background(rng: np.random.Generator, shape: tuple[int, int], split: str) -> np.ndarray:
    """Crop a photograph of the split 'train' or 'val', RGB, uint8 (height, width, 3)."""
    names = PHOTOS[split].backgrounds
    crop = crop_photo(rng, names[rng.integers(len(names))], WHOLE, shape)
    # Grey photographs get a colour by it.
    return _quantize(crop * rng.uniform(0.7, 1.1, 3))


def draw_trimap(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """Erode what is opaque and what is transparent by a disk, and call the rest unknown.

    Args:
        rng: Source of the disk's radius, 2 to 5 pixels, or less where nothing would remain.
        alpha: uint8 (height, width).

    Returns:
        uint8 (height, width) of 0, 128 and 255.
    """
    radius = int(rng.integers(EROSION[0], EROSION[1] + 1))
    trimap = np.full_like(alpha, UNKNOWN)
    for value in (0, 255):
        region = alpha == value
        if region.any():
            distance = ndimage.distance_transform_edt(region)
            trimap[distance > min(radius, np.ceil(distance.max()) - 1)] = value
    return trimap


def composite(foreground: np.ndarray, background: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return alpha * foreground + (1 - alpha) * background of uint8 arrays, rounded."""
    part = alpha[..., None] / 255
    return np.round(part * foreground + (1 - part) * background).astype(np.uint8)


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_matting(
    root: Path,
    split: str,
    shape: tuple[int, int],
    numbers: Iterable[tuple[int, np.random.Generator]],
) -> list[float]:
    """Write foregrounds, or composites of them, as Composition-1k has them: PNG.

    Kinds take turns, and are in the names. A foreground of the training comes with a background;
    one of the test is merged with two, each with a trimap of its own.

    Args:
        root: Where to make the folder `matting`.
        split: 'train' or 'val'.
        shape: Height and width in pixels.
        numbers: Each foreground's number from 0, and its source of chance.

    Returns:
        The share of each foreground's pixels that are neither opaque nor transparent.
    """
    partial = []
    for k, rng in numbers:
        kind = KINDS[k % len(KINDS)]
        name = f'{kind}_{k + 1:05d}'
        matte = draw_matte(rng, kind, shape, split)
        if split == 'train':
            folder = root / 'matting' / 'Training_set'
            _save(folder / 'fg' / f'{name}.png', matte.foreground)
            _save(folder / 'bg' / f'photo_{k + 1:05d}.png', draw_background(rng, shape, split))
        else:
            folder = root / 'matting' / 'Test_set'
            for place in range(BACKGROUNDS_PER_TEST):
                background = draw_background(rng, shape, split)
                merged = composite(matte.foreground, background, matte.alpha)
                _save(folder / 'merged' / f'{name}_{place}.png', merged)
                _save(folder / 'trimaps' / f'{name}_{place}.png', draw_trimap(rng, matte.alpha))
        _save(folder / 'alpha' / f'{name}.png', matte.alpha)
        partial.append(float(((matte.alpha > 0) & (matte.alpha < 255)).mean()))
    return partial
