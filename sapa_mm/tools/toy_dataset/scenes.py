"""Draws scenes: photographs' textures cut into shapes whose masks are known exactly.

The coverage of a pixel by a shape blends the colours there; a coverage of one half or more is the
mask. Blur, noise and light change the picture afterwards, never the mask.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import skimage.data
from PIL import Image
from scipy import ndimage
from skimage import color

from .shapes import (
    Polygons,
    Shape,
    coverage,
    draw_ball,
    draw_bicycle,
    draw_chair,
    draw_horse,
    draw_kite,
    draw_plant,
    draw_vase,
    ellipse,
)

MIN_AREA = 16  # visible pixels below which an instance becomes unlabelled


@dataclasses.dataclass(frozen=True)
class Texture:
    """Lays a colour family over the light and dark of a photograph.

    Args:
        photos: Names in `skimage.data` that the wheel ships, each with the part of it to crop
            from as fractions (left, top, right, bottom).
        hsv: Mean hue, saturation and value, each in [0, 1].
        jitter: Half ranges of the uniform change of hue, saturation and value in each scene.
        contrast: Strength of the photograph's light and dark.
    """

    photos: tuple[tuple[str, tuple[float, float, float, float]], ...]
    hsv: tuple[float, float, float]
    jitter: tuple[float, float, float] = (0.025, 0.12, 0.1)
    contrast: float = 0.3

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Draw a filling.

        Args:
            rng: Source of the crop and of the colour.
            shape: Height and width in pixels.

        Returns:
            Float array (height, width, 3), about [0, 1].
        """
        name, part = self.photos[rng.integers(len(self.photos))]
        grey = color.rgb2gray(crop_photo(rng, name, part, shape))
        grey = np.clip((grey - grey.mean()) / (grey.std() + 1e-3), -2.2, 2.2)
        hsv = np.array(self.hsv) + rng.uniform(-1, 1, 3) * self.jitter
        hsv = np.array([hsv[0] % 1.0, *np.clip(hsv[1:], 0.02, 0.98)])
        return color.hsv2rgb(hsv) * np.exp(self.contrast * grey)[..., None]


WHOLE = (0.0, 0.0, 1.0, 1.0)
FUR = (('chelsea', (0.15, 0.05, 0.7, 0.6)),)
METAL = (('stereo_motorcycle', (0.1, 0.35, 0.9, 0.95)),)
WOOD = (('coffee', (0.6, 0.0, 1.0, 0.35)), ('coffee', (0.0, 0.55, 0.3, 1.0)))
CLOTH = (('astronaut', (0.1, 0.55, 0.75, 0.95)),)
LEAVES = (('grass', WHOLE), ('immunohistochemistry', WHOLE))
GLAZE = (('moon', WHOLE), ('retina', (0.25, 0.25, 0.75, 0.75)))


@dataclasses.dataclass(frozen=True)
class Background:
    """Describes a background class: its name and index (1 to 150) in ADE20K, and its texture."""

    ade_name: str
    ade_index: int
    texture: Texture


@dataclasses.dataclass(frozen=True)
class ObjectClass:
    """Describes an object class.

    Args:
        ade_name: Name in ADE20K.
        ade_index: Index in ADE20K's annotations, 1 to 150.
        coco_name: Name in COCO.
        size: Height as a fraction of the image's shorter side, smallest and largest.
        draw: Draws one random shape.
        textures: The texture of each key in the shape.
        tilt: Largest rotation in degrees.
        flies: Whether it stands in the upper region and casts no shadow.
    """

    ade_name: str
    ade_index: int
    coco_name: str
    size: tuple[float, float]
    draw: Callable[[np.random.Generator], Shape]
    textures: dict[str, Texture]
    tilt: float = 8.0
    flies: bool = False


@dataclasses.dataclass(frozen=True)
class Scene:
    """Holds one picture and its annotation.

    Args:
        image: RGB, uint8 (height, width, 3).
        labels: ADE20K indices, uint8 (height, width); 0 is unlabelled.
        instances: Visible objects: COCO name and mask, bool (height, width). The masks are
            disjoint and hold at least `MIN_AREA` pixels each.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: list[tuple[str, np.ndarray]]


@functools.cache
def load_photo(name: str) -> Image.Image:
    """Load a photograph of scikit-image's wheel as an RGB image."""
    photo = getattr(skimage.data, name)()
    return Image.fromarray(photo[0] if isinstance(photo, tuple) else photo).convert('RGB')


def crop_photo(
    rng: np.random.Generator,
    name: str,
    part: tuple[float, float, float, float],
    shape: tuple[int, int],
) -> np.ndarray:
    """Crop a photograph at random.

    Args:
        rng: Source of the crop's place, size and flip.
        name: Name in `skimage.data`.
        part: Where to crop from, as fractions (left, top, right, bottom).
        shape: Height and width of the result in pixels.

    Returns:
        Float array (height, width, 3) in [0, 1].
    """
    photo = load_photo(name)
    left, top, right, bottom = np.array(part) * (photo.size * 2)
    height, width = shape
    longest = min((right - left) / width, (bottom - top) / height)  # photo pixels per pixel
    step = longest * rng.uniform(0.45, 1.0)
    x = rng.uniform(left, right - step * width)
    y = rng.uniform(top, bottom - step * height)
    box = (x, y, min(x + step * width, photo.width), min(y + step * height, photo.height))
    crop = photo.resize((width, height), Image.Resampling.BICUBIC, box)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop, np.float64) / 255


def fractal_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int = 3) -> np.ndarray:
    """Draw smooth noise of four octaves.

    Args:
        rng: Source of the noise.
        shape: Height and width in pixels.
        cells: Waves across the image in the lowest octave.

    Returns:
        Float array (height, width) of mean 0 and standard deviation 1.
    """
    total = np.zeros(shape)
    for octave in range(4):
        side = cells * 2**octave + 1
        grid = Image.fromarray(rng.standard_normal((side, side)).astype(np.float32))
        total += np.asarray(grid.resize(shape[::-1], Image.Resampling.BICUBIC)) / 2**octave
    return (total - total.mean()) / total.std()


BACKGROUNDS = {
    'sky': Background(
        'sky',
        3,
        Texture((('rocket', (0.3, 0.0, 0.7, 0.3)),), (0.57, 0.4, 0.8), contrast=0.1),
    ),
    'wall': Background(
        'wall', 1, Texture((('brick', WHOLE),), (0.06, 0.22, 0.66), (0.03, 0.1, 0.14), 0.16)
    ),
    'grass': Background('grass', 10, Texture((('grass', WHOLE),), (0.24, 0.55, 0.5))),
    'earth': Background('earth', 14, Texture((('gravel', WHOLE),), (0.09, 0.3, 0.5))),
}

OBJECTS = (
    ObjectClass(
        'bicycle',
        128,
        'bicycle',
        (0.34, 0.62),
        draw_bicycle,
        {
            'tyre': Texture(METAL, (0.63, 0.3, 0.17), (0.05, 0.2, 0.05), 0.35),
            'frame': Texture(METAL, (0.63, 0.75, 0.62), (0.03, 0.15, 0.15), 0.35),
        },
    ),
    ObjectClass(
        'animal',
        127,
        'horse',
        (0.38, 0.68),
        draw_horse,
        {'fur': Texture(FUR, (0.06, 0.62, 0.42), (0.02, 0.1, 0.14), 0.35)},
    ),
    ObjectClass(
        'plant',
        18,
        'potted plant',
        (0.42, 0.72),
        draw_plant,
        {
            'leaf': Texture(LEAVES, (0.4, 0.65, 0.36), (0.03, 0.12, 0.1), 0.35),
            'pot': Texture(GLAZE, (0.03, 0.6, 0.6), (0.015, 0.1, 0.12), 0.15),
        },
    ),
    ObjectClass(
        'chair',
        20,
        'chair',
        (0.4, 0.7),
        draw_chair,
        {'wood': Texture(WOOD, (0.8, 0.45, 0.5), (0.03, 0.12, 0.14), 0.3)},
    ),
    ObjectClass(
        'ball',
        120,
        'sports ball',
        (0.14, 0.3),
        draw_ball,
        {
            'skin': Texture(GLAZE, (0.08, 0.85, 0.92), (0.02, 0.1, 0.06), 0.12),
            'panel': Texture(GLAZE, (0.1, 0.12, 0.92), (0.05, 0.06, 0.06), 0.1),
        },
        tilt=180.0,
    ),
    ObjectClass(
        'flag',
        150,
        'kite',
        (0.32, 0.58),
        draw_kite,
        {
            'left': Texture(CLOTH, (0.97, 0.8, 0.75), (0.02, 0.12, 0.1), 0.2),
            'right': Texture(CLOTH, (0.14, 0.8, 0.9), (0.015, 0.12, 0.08), 0.2),
        },
        tilt=45.0,
        flies=True,
    ),
    ObjectClass(
        'vase',
        136,
        'vase',
        (0.26, 0.48),
        draw_vase,
        {
            'glaze': Texture(GLAZE, (0.49, 0.35, 0.82), (0.02, 0.12, 0.1), 0.15),
            'band': Texture(GLAZE, (0.6, 0.75, 0.5), (0.03, 0.12, 0.1), 0.15),
        },
    ),
)


def _add_clutter(rng: np.random.Generator, image: np.ndarray, count: int) -> np.ndarray:
    """Blend soft scraps and crisp slanted pictures of photographs into a background."""
    shape = image.shape[:2]
    names = ('astronaut', 'coffee', 'camera', 'chelsea', 'coins', 'rocket', 'hubble_deep_field')
    for _ in range(count):
        place = rng.uniform(0, 1, 2) * shape[::-1]
        if rng.random() < 0.5:
            radius = rng.uniform(0.08, 0.2) * min(shape)
            y, x = np.ogrid[: shape[0], : shape[1]]
            distance = np.hypot(x - place[0], y - place[1]) / radius
            alpha = np.clip(1.5 - distance + 0.35 * fractal_noise(rng, shape, 6), 0, 1)
        else:
            sides = rng.uniform(0.08, 0.3, 2) * min(shape)
            turn = rng.uniform(-0.5, 0.5)
            turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            affine = np.column_stack([turned * sides, place])
            corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
            alpha = coverage([(True, corners)], affine, shape)
        alpha = alpha[..., None] * rng.uniform(0.3, 0.65)
        scrap = crop_photo(rng, names[rng.integers(len(names))], WHOLE, shape)
        image = image + alpha * (scrap - image)
    return image


def _draw_background(
    rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw two regions and their border.

    Returns:
        The image, the ADE20K labels and the border's mean height in pixels from the top.
    """
    height, width = shape
    upper = BACKGROUNDS[('sky', 'wall')[rng.integers(2)]]
    lower = BACKGROUNDS[('grass', 'earth')[rng.integers(2)]]
    above = upper.texture.sample(rng, shape)
    if upper.ade_name == 'sky':
        cloud = np.clip(fractal_noise(rng, shape, 2) * 0.6 + rng.uniform(-0.3, 0.4), 0, 1)
        above += (cloud * rng.uniform(0.4, 0.8))[..., None] * (0.95 - above)
    above = _add_clutter(rng, above, int(rng.integers(1, 4)))
    below = lower.texture.sample(rng, shape)
    below *= 1 + 0.15 * fractal_noise(rng, shape)[..., None]
    below = _add_clutter(rng, below, int(rng.integers(1, 4)))

    border = rng.uniform(0.32, 0.55)
    x = np.linspace(0, 1, width * 2)
    rough = fractal_noise(rng, (2, width * 2), 8)[0] * rng.uniform(0.008, 0.02)
    y = border + rng.uniform(-0.25, 0.25) * (x - 0.5) + rough
    ground: Polygons = [(True, np.vstack([np.stack([x, y], 1), [(1.0, 1.1), (0.0, 1.1)]]))]
    for _ in range(rng.integers(20, 45)):
        k = rng.integers(x.size)
        size = rng.uniform(0.02, 0.09)
        if lower.ade_name == 'grass':
            tip = (x[k] + rng.uniform(-0.5, 0.5) * size, y[k] - size)
            ground.append(
                (True, np.array([(x[k] - 0.012, y[k] + 0.01), tip, (x[k] + 0.012, y[k] + 0.01)]))
            )
        else:
            ground.append((True, ellipse((x[k], y[k]), (size * 0.4, size * 0.3))))
    alpha = coverage(ground, np.array([[width, 0, 0], [0, height, 0]], float), shape)
    labels = np.where(alpha >= 0.5, lower.ade_index, upper.ade_index).astype(np.uint8)
    return above + alpha[..., None] * (below - above), labels, border * height


def shade_body(alpha: np.ndarray, light: np.ndarray, sigma: float) -> np.ndarray:
    """Return the brightness of a rounded body with this outline, lit from `light` (x, y)."""
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(alpha, sigma))
    relief = -(slope_x * light[0] + slope_y * light[1])
    return np.exp(np.clip(0.45 * relief / (np.abs(relief).max() + 1e-6), -0.6, 0.6))


def finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Vary lighting and colour, blur slightly, add noise and quantize to uint8."""
    height, width = image.shape[:2]
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0, 0.35) * (np.cos(angle) * x + np.sin(angle) * y)
    image = np.clip(image * (1 + light)[..., None], 0, 1.4)
    image = image ** rng.uniform(0.8, 1.25) * rng.uniform(0.94, 1.06, 3) * rng.uniform(0.85, 1.1)
    image = ndimage.gaussian_filter(image, (*(rng.uniform(0, 0.6),) * 2, 0))
    image = image + rng.normal(0, rng.uniform(0.004, 0.025), image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def paint_object(
    rng: np.random.Generator,
    image: np.ndarray,
    kind: ObjectClass,
    place: np.ndarray,
    scale: float,
    light: np.ndarray,
) -> np.ndarray:
    """Paint one object and its shadow over a picture.

    Args:
        rng: Source of its shape, tilt and textures.
        image: Float (height, width, 3), changed in place.
        kind: Its class.
        place: Column and row in pixels of its foot's middle.
        scale: Its height in pixels before it is tilted.
        light: Where the light comes from (x, y).

    Returns:
        Float array (height, width): the fraction of every pixel that it covers.
    """
    tilt = np.deg2rad(rng.uniform(-kind.tilt, kind.tilt))
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [np.sin(tilt), -np.cos(tilt)]])
    turn[:, 0] *= rng.choice([-1, 1]) * rng.uniform(0.88, 1.12)
    # It turns about the middle, so that a rolling ball stays on the ground.
    affine = np.column_stack([turn * scale, place - (0, scale / 2) - turn @ (0, scale / 2)])
    shape = image.shape[0], image.shape[1]
    parts = [(key, coverage(drawn, affine, shape)) for key, drawn in kind.draw(rng)]
    alpha: np.ndarray = np.max([part for _, part in parts], 0)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not rows.size:
        return alpha
    if not kind.flies:
        flat = np.array([[scale * 0.5, 0, place[0]], [0, scale * 0.09, place[1]]])
        shadow = coverage([(True, ellipse((0, 0), (1, 1)))], flat, shape)
        image *= 1 - 0.45 * ndimage.gaussian_filter(shadow, scale * 0.04)[..., None]
    # The filling is cropped from a photograph once for each part, to the size of the whole.
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    shade = shade_body(alpha, light, max(0.035 * scale, 0.7))[box][..., None]
    for key, part in parts:
        filling = kind.textures[key].sample(rng, (shade.shape[0], shade.shape[1])) * shade
        image[box] += part[box][..., None] * (filling - image[box])
    return alpha


def render_scene(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """Draw one scene of two background regions and three to six objects.

    Args:
        rng: The only source of chance: equal generators give equal scenes.
        shape: Height and width in pixels.

    Returns:
        The picture with its labels and instances, at least one.
    """
    height, width = shape
    image, labels, horizon = _draw_background(rng, shape)
    light = rng.uniform(-1, 1, 2) + (0, -1.2)
    count = rng.integers(3, 7)
    kinds = [OBJECTS[k] for k in rng.permutation(len(OBJECTS))[:count]]
    depths = np.sort(rng.uniform(0, 1, count))  # far to near
    owner = np.full(shape, -1)
    for k, (kind, depth) in enumerate(zip(kinds, depths, strict=True)):
        scale = min(shape) * rng.uniform(*kind.size) * (0.8 + 0.45 * depth)
        if kind.flies:
            base = scale * 0.5 + rng.uniform(0, 0.45) * height
        else:
            base = horizon + (0.12 + 0.88 * depth) * (height * 1.02 - horizon)
        place = np.array([rng.uniform(0.05, 0.95) * width, base])
        alpha = paint_object(rng, image, kind, place, scale, light)
        owner[alpha >= 0.5] = k
    instances = []
    for k, kind in enumerate(kinds):
        mask = owner == k
        if mask.sum() < MIN_AREA:
            labels[mask] = 0
            continue
        labels[mask] = kind.ade_index
        instances.append((kind.coco_name, mask))
    return Scene(finish(rng, image), labels, instances)
