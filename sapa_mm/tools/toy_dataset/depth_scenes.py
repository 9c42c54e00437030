"""Draws rooms whose depth is known exactly, and takes the depth of one real picture.

A pinhole camera looks level into a room. A plane's inverse depth is linear in the pixel's place, so
that the nearest of the planes is the largest of these. Objects have a size in metres, stand on the
floor or fly, are flat and face the camera. They are painted far to near, and a pixel's depth is
that of what owns it: what covers at least half of it.
"""

import dataclasses

import numpy as np
import skimage.data
from scipy import ndimage

from .scenes import BACKGROUNDS, OBJECTS, WHOLE, Texture, crop_photo, finish, paint_object

# Heights in metres of the objects of `OBJECTS`, by their names in COCO.
HEIGHTS = {
    'bicycle': 1.0,
    'horse': 1.5,
    'potted plant': 0.9,
    'chair': 0.9,
    'sports ball': 0.45,
    'kite': 0.8,
    'vase': 0.6,
}
# Metres to the nearest kite.
NEAREST_KITE = 1.0
# Texels of a plane's texture for each metre, and metres after which it is mirrored.
TEXELS, PERIOD = 96, 4.0
# Focal length and baseline by which stereo_motorcycle was taken, in pixels and metres, and the
# distance of the two principal points, as scikit-image's documentation gives them.
MOTORCYCLE_FOCAL, MOTORCYCLE_BASELINE, MOTORCYCLE_SHIFT = 994.978, 0.193001, 31.086


@dataclasses.dataclass(frozen=True)
class Camera:
    """Describes a pinhole camera that looks level along z; x points right and y down.

    Args:
        focal: Focal length in pixels.
        height: Height above the floor in metres.
        center: Principal point, column and row in pixels from the picture's upper left corner; its
            row is the horizon's.
    """

    focal: float
    height: float
    center: tuple[float, float]

    def rays(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return x / z (1, width) and y / z (height, 1) of the centres of the pixels."""
        rows, columns = np.ogrid[: shape[0], : shape[1]]
        return (
            (columns + 0.5 - self.center[0]) / self.focal,
            (rows + 0.5 - self.center[1]) / self.focal,
        )

    def project(self, x: float, y: float, z: float) -> np.ndarray:
        """Return column and row in pixels of a point in metres."""
        return np.array(self.center) + np.array([x, y]) * self.focal / z


@dataclasses.dataclass(frozen=True)
class Plane:
    """Describes a plane of the room: at x / z and y / z its inverse depth is a x / z + b y / z + c.

    Args:
        inverse: a, b and c in 1 / m.
        across: Direction (x, y, z) in the plane along which its texture's columns run.
        along: Direction in the plane along which the texture's rows run.
        texture: Its filling, (texels, texels, 3).
    """

    inverse: tuple[float, float, float]
    across: tuple[float, float, float]
    along: tuple[float, float, float]
    texture: np.ndarray


@dataclasses.dataclass(frozen=True)
class DepthScene:
    """Holds one picture and its depth.

    Args:
        image: RGB, uint8 (height, width, 3).
        depth: Metres, float (height, width); 0 is unknown.
        camera: What took it.
        objects: COCO name, depth in metres and mask of the visible pixels, bool (height, width), of
            every object, far to near.
    """

    image: np.ndarray
    depth: np.ndarray
    camera: Camera
    objects: list[tuple[str, float, np.ndarray]]


def motorcycle() -> tuple[np.ndarray, np.ndarray]:
    """Return the left picture of scikit-image's ``stereo_motorcycle`` with its depth.

    Depth is focal length times baseline over disparity, to which the distance of the two principal
    points is added first.

    Returns:
        RGB, uint8 (500, 741, 3), and metres, float (500, 741), 0 where the disparity is not known.
    """
    image, _, disparity = skimage.data.stereo_motorcycle()
    known = np.isfinite(disparity)
    shifted = np.where(known, disparity, 0.0) + MOTORCYCLE_SHIFT
    return image, np.where(known, MOTORCYCLE_FOCAL * MOTORCYCLE_BASELINE / shifted, 0.0)


def _tiled(rng: np.random.Generator, texture: Texture, tile: float) -> np.ndarray:
    """Fill a plane with a photograph's texture, cut into square tiles of that many metres."""
    side = int(TEXELS * PERIOD)
    count = round(PERIOD / tile)
    filling = texture.sample(rng, (side, side))
    place = np.arange(side) * count / side
    tone = np.exp(rng.normal(0, 0.13, (count, count)))[place.astype(int)][:, place.astype(int)]
    joint = (place % 1) * side / count < 2.5
    tone = np.where(joint[:, None] | joint, 0.55, tone)
    return filling * tone[..., None]


def _fill(plane: Plane, camera: Camera, shape: tuple[int, int], depth: np.ndarray) -> np.ndarray:
    """Draw a plane's texture as the camera sees it, (height, width, 3).

    The further away or the more slanted the plane is, the smoother is the texture that is sampled,
    so that none is finer than the pixels.
    """
    ray_x, ray_y = camera.rays(shape)
    point = np.stack(np.broadcast_arrays(ray_x * depth, ray_y * depth, depth))
    places = [
        np.tensordot(direction, point, 1) * TEXELS for direction in (plane.along, plane.across)
    ]
    steps = [np.hypot(*np.gradient(place)) for place in places]
    level = np.log2(np.clip(np.maximum(*steps), 1, 2**5))
    total = np.zeros((*shape, 3))
    for k in range(6):
        weight = np.clip(1 - np.abs(level - k), 0, 1)
        if not weight.any():
            continue
        sigma = 0.5 * 2**k if k else 0.0
        smooth = ndimage.gaussian_filter(plane.texture, (sigma, sigma, 0), mode='reflect')
        for channel in range(3):
            seen = ndimage.map_coordinates(smooth[..., channel], places, order=1, mode='reflect')
            total[..., channel] += weight * seen
    return total


def _draw_planes(rng: np.random.Generator, camera: Camera) -> list[Plane]:
    """Draw a floor, a wall that may be slanted, and often a wall at one side."""
    slant = rng.uniform(-0.4, 0.4) if rng.random() < 0.7 else 0.0
    distance = rng.uniform(3.0, 7.5)
    norm = np.hypot(1, slant)
    down, right, ahead = (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    floor = BACKGROUNDS['earth'].texture
    wall = BACKGROUNDS['wall'].texture
    planes = [
        Plane((0, 1 / camera.height, 0), right, ahead, _tiled(rng, floor, 0.5)),
        # z = distance + slant x
        Plane(
            (-slant / distance, 0, 1 / distance),
            (1 / norm, 0.0, slant / norm),
            down,
            _tiled(rng, wall, 0.8),
        ),
    ]
    if rng.random() < 0.6:
        side = rng.choice([-1, 1]) * rng.uniform(1.3, 2.2)
        planes.append(Plane((1 / side, 0, 0), ahead, down, _tiled(rng, wall, 0.8)))
    return planes


def _draw_mirror(
    rng: np.random.Generator, image: np.ndarray, plane: Plane, seen: np.ndarray, camera: Camera
) -> np.ndarray:
    """Hang a picture of elsewhere on the wall that is `plane`, seen at the mask `seen`.

    Returns:
        bool (height, width): where the mirror is.
    """
    shape = seen.shape[0], seen.shape[1]
    ray_x, ray_y = camera.rays(shape)
    a, _, c = plane.inverse
    distance = 1 / c
    width, height = rng.uniform(0.6, 1.1), rng.uniform(0.5, 0.9)
    middle = rng.uniform(-0.35, 0.35) * distance, rng.uniform(-0.9, -0.1)
    depth = 1 / np.maximum(a * ray_x + c, 1e-3)
    x, y = ray_x * depth - middle[0], ray_y * depth - middle[1]
    outer = seen & (np.abs(x) < width / 2) & (np.abs(y) < height / 2)
    inner = outer & (np.abs(x) < width / 2 - 0.05) & (np.abs(y) < height / 2 - 0.05)
    name = ('coffee', 'chelsea', 'rocket')[rng.integers(3)]
    elsewhere = crop_photo(rng, name, WHOLE, shape)
    image[outer] = (0.2, 0.14, 0.1)
    image[inner] = 0.25 + 0.75 * elsewhere[inner]
    return inner


def _place_object(
    rng: np.random.Generator, name: str, flies: bool, camera: Camera, inverse: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """Draw where an object is.

    Args:
        rng: Source of the place.
        name: Its name in COCO.
        flies: Whether it does not stand on the floor.
        camera: What sees it.
        inverse: Inverse depth of the walls, (height, width).

    Returns:
        Column and row of its foot in pixels, and its depth in metres; None if it has no room.
    """
    height, width = inverse.shape
    # The foot of what stands may lie a little below the picture.
    nearest = camera.focal * camera.height / (height * 1.05 - camera.center[1])
    if flies:
        nearest = NEAREST_KITE
    for _ in range(20):
        column = rng.uniform(0.05, 0.95) * width
        furthest = 1 / inverse[0, int(column)]
        if furthest * 0.95 < nearest:
            continue
        depth = np.exp(rng.uniform(np.log(nearest), np.log(furthest * 0.95)))
        foot = camera.height
        if flies:
            foot -= rng.uniform(0.3, 1.4) * camera.height
        x = (column - camera.center[0]) * depth / camera.focal
        place = camera.project(x, foot, depth)
        reach = camera.focal * HEIGHTS[name] / depth
        low, high = np.clip([column - reach, column + reach], 0, width - 1).astype(int)
        # A slanted wall would cut through it.
        if (inverse[0, low : high + 1] * depth < 0.97).all():
            return place, float(depth)
    return None


def _unknown(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw where a sensor would measure nothing: a strip at one side and specks, bool."""
    height, width = shape
    unknown = np.zeros(shape, bool)
    strip = max(1, round(rng.uniform(0.015, 0.04) * width))
    if rng.random() < 0.5:
        unknown[:, :strip] = True
    else:
        unknown[:, width - strip :] = True
    y, x = np.ogrid[:height, :width]
    for _ in range(rng.integers(4, 12)):
        radius = rng.uniform(0.004, 0.015) * min(shape)
        center = rng.uniform(0, 1, 2) * shape
        unknown |= np.hypot(y + 0.5 - center[0], x + 0.5 - center[1]) < max(radius, 0.8)
    return unknown


def render_depth_scene(rng: np.random.Generator, shape: tuple[int, int]) -> DepthScene:
    """Draw one room with objects.

    Args:
        rng: The only source of chance: equal generators give equal scenes.
        shape: Height and width in pixels.

    Returns:
        The picture with its depth, strictly between 0.5 and 10 m where it is known.
    """
    height, width = shape
    camera = Camera(
        rng.uniform(0.85, 1.0) * max(shape),
        rng.uniform(1.1, 1.5),
        (width / 2, rng.uniform(0.34, 0.46) * height),
    )
    planes = _draw_planes(rng, camera)
    ray_x, ray_y = camera.rays(shape)
    inverses = np.stack(
        [a * ray_x + b * ray_y + c for a, b, c in (plane.inverse for plane in planes)]
    )
    nearest = inverses.argmax(0)
    depth = 1 / inverses.max(0)
    image = np.zeros((*shape, 3))
    for k, plane in enumerate(planes):
        seen = nearest == k
        if seen.any():
            filled = np.where(seen, depth, depth[seen].max())
            image[seen] = _fill(plane, camera, shape, filled)[seen]
    unknown = np.zeros(shape, bool)
    if rng.random() < 0.6:
        unknown = _draw_mirror(rng, image, planes[1], nearest == 1, camera)

    light = rng.uniform(-1, 1, 2) + (0, -1.2)
    walls = inverses[1:].max(0)
    placed = []
    for k in rng.integers(len(OBJECTS), size=rng.integers(4, 9)):
        kind = OBJECTS[k]
        found = _place_object(rng, kind.coco_name, kind.flies, camera, walls)
        if found is not None:
            placed.append((kind, *found))
    placed.sort(key=lambda one: -one[2])
    owner = np.full(shape, -1)
    for k, (kind, place, z) in enumerate(placed):
        scale = camera.focal * HEIGHTS[kind.coco_name] / z
        covered = paint_object(rng, image, kind, place, scale, light) >= 0.5
        owner[covered], depth[covered], unknown[covered] = k, z, False
    # Air takes light away and adds its own, the more of both the further it has to go.
    clear = np.exp(-rng.uniform(0.1, 0.13) * depth)[..., None]
    image = image * clear + (0.6, 0.66, 0.74) * (1 - clear)
    depth[unknown | _unknown(rng, shape)] = 0
    objects = [(kind.coco_name, z, owner == k) for k, (kind, _, z) in enumerate(placed)]
    return DepthScene(finish(rng, image), depth, camera, objects)
