"""Draws rooms with exact metric depth, seen by a pinhole camera that looks straight ahead.

Floor, ceiling and walls are planes, whose inverse depth is linear in the image. Objects stand in
the room at one depth each, as large as it makes them, and hide what is behind: depth jumps at their
outlines as sharply as their masks do.
"""

import dataclasses

import numpy as np
import skimage.data
from scipy import ndimage

from .scenes import (
    OBJECTS,
    WHOLE,
    ObjectClass,
    Texture,
    add_clutter,
    draw_object,
    finish,
    fractal_noise,
)

# Height in metres, by the name in COCO.
HEIGHTS = {
    'bicycle': 1.05,
    'horse': 1.5,
    'potted plant': 1.0,
    'chair': 0.95,
    'sports ball': 0.45,
    'kite': 0.9,
    'vase': 0.6,
}
# The camera's focal length in shorter sides of the image, a view of 58 degrees.
FOCAL = 0.9
# What is nearer or farther than these, in metres, is not in a room.
NEAREST, FARTHEST = 0.8, 9.5
# Pixels of a texture to a metre of a plane, and its size.
RESOLUTION, TEXTURE = 60, (256, 256)
FLOORS = (
    Texture((('gravel', WHOLE),), (0.09, 0.3, 0.5)),
    Texture((('grass', WHOLE),), (0.3, 0.3, 0.45)),
    Texture((('coffee', (0.6, 0.0, 1.0, 0.35)),), (0.07, 0.5, 0.45)),
)
WALLS = (
    Texture((('brick', WHOLE),), (0.06, 0.25, 0.66), (0.05, 0.1, 0.14), 0.2),
    Texture((('moon', WHOLE),), (0.55, 0.2, 0.7), (0.2, 0.1, 0.14), 0.15),
    Texture((('grass', WHOLE),), (0.12, 0.2, 0.7), (0.2, 0.1, 0.14), 0.12),
)
# Millimetres of a metre, the unit of the files, in which 0 is unknown.
UNIT = 1000
# Middlebury's calibration of the motorcycle's images, as `skimage.data.stereo_motorcycle` gives it:
# focal length in pixels, baseline in metres, and how far the principal points are apart, in pixels.
MOTORCYCLE = (994.978, 0.193001, 31.086)


@dataclasses.dataclass(frozen=True)
class DepthScene:
    """Holds one picture and its depth.

    Args:
        image: RGB, uint8 (height, width, 3).
        depth: In metres, float (height, width); 0 is unknown.
    """

    image: np.ndarray
    depth: np.ndarray

    @property
    def millimetres(self) -> np.ndarray:
        """Return the depth as it is written, uint16."""
        return np.round(UNIT * self.depth).astype(np.uint16)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera above a floor, whose axis is level.

    Args:
        shape: Height and width of its images in pixels.
        horizon: The horizon's row, in pixels from the top.
        height: Of the camera above the floor, in metres.
    """

    shape: tuple[int, int]
    horizon: float
    height: float

    @property
    def focal(self) -> float:
        """Return the focal length in pixels."""
        return FOCAL * min(self.shape)

    @property
    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the pixels' rays at a depth of 1, (height, width) each, y downwards."""
        rows, columns = np.mgrid[: self.shape[0], : self.shape[1]] + 0.5
        return (columns - self.shape[1] / 2) / self.focal, (rows - self.horizon) / self.focal

    def row(self, above_floor: float, depth: float) -> float:
        """Return the row that shows what is so high above the floor, at this depth, in metres."""
        return self.horizon + self.focal * (self.height - above_floor) / depth


def _planes(
    rng: np.random.Generator, camera: Camera
) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Lay floor, ceiling, a wall ahead and one at the side.

    Returns:
        Of every plane its inverse depth in 1/metres, and at a depth of 1 two coordinates on it in
        metres, which grow with depth.
    """
    x, y = camera.rays
    ceiling = camera.height - rng.uniform(2.5, 3.2)
    turn = np.deg2rad(rng.uniform(-25, 25))
    side = rng.choice([-1, 1])
    inverse, coordinates = [], []
    for height in (camera.height, ceiling):
        inverse.append(y / height)
        coordinates.append((x, np.ones_like(x)))
    for angle, distance in (
        (turn, rng.uniform(3.5, 8.0)),
        (turn + side * np.pi / 2, rng.uniform(1.6, 3.5)),
    ):
        inverse.append((np.cos(angle) + x * np.sin(angle)) / distance)
        coordinates.append((x * np.cos(angle) - np.sin(angle), y))
    return inverse, coordinates


def _draw_room(rng: np.random.Generator, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Draw an empty room.

    Returns:
        The image, float (height, width, 3), and its depth in metres.
    """
    inverse, coordinates = _planes(rng, camera)
    # The room is convex: of all planes the nearest is seen.
    seen = np.argmax(inverse, 0)
    depth = 1 / np.clip(np.max(inverse, 0), 1 / FARTHEST, 1 / NEAREST)
    kinds = FLOORS[rng.integers(len(FLOORS))], *(WALLS[k] for k in rng.integers(len(WALLS), size=3))
    image = np.empty((*camera.shape, 3))
    for k, (kind, across) in enumerate(zip(kinds, coordinates, strict=True)):
        filling = kind.sample(rng, TEXTURE)
        filling = add_clutter(rng, filling, int(rng.integers(1, 4)))
        at = [RESOLUTION * depth * part + rng.uniform(0, 500) for part in across]
        shown = [ndimage.map_coordinates(c, at, order=1, mode='mirror') for c in filling.T]
        # The planes are lit differently, so that their creases show.
        drawn = np.stack(shown, -1) * rng.uniform(0.75, 1.1)
        image = np.where((seen == k)[..., None], drawn, image)
    return image, depth


def _place(
    rng: np.random.Generator, camera: Camera, kind: ObjectClass, room: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """Find a place for an object in front of all walls.

    Returns:
        Its depth in metres, its height in pixels, and (x, y) of its foot in pixels.
    """
    height, width = camera.shape
    column = rng.uniform(0.08, 0.92) * width
    lift = rng.uniform(0.9, 1.6) if kind.flies else 0.0
    # The foot of the nearest is somewhat below the image.
    nearest = camera.focal * camera.height / (1.25 * height - camera.horizon)
    behind = room[:, int(column)].max()
    depth = rng.uniform(max(nearest, NEAREST), max(0.85 * behind, nearest + 0.1))
    place = np.array([column, camera.row(lift, depth)])
    return depth, camera.focal * HEIGHTS[kind.coco_name] / depth, place


def _unknown(rng: np.random.Generator, image: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Say where depth is unknown, as sensors leave it: a strip, specks and a pane.

    Args:
        rng: Source of all of it.
        image: Float (height, width, 3); the pane is drawn into it.
        empty: Where no object is, bool (height, width).

    Returns:
        bool (height, width).
    """
    height, width = empty.shape
    unknown = fractal_noise(rng, empty.shape, 6) > rng.uniform(2.2, 2.8)
    unknown[:, : rng.integers(0, max(width // 25, 2))] = True
    if rng.random() < 0.5:
        top, left = rng.uniform(0.05, 0.3) * height, rng.uniform(0.1, 0.7) * width
        pane = np.zeros_like(unknown)
        pane[
            int(top) : int(top + rng.uniform(0.1, 0.25) * height),
            int(left) : int(left + rng.uniform(0.1, 0.25) * width),
        ] = True
        pane &= empty
        image[pane] = 0.3 * image[pane] + rng.uniform(0.4, 0.7)
        unknown |= pane
    return unknown


def render_depth_scene(rng: np.random.Generator, shape: tuple[int, int]) -> DepthScene:
    """Draw a room with three to six objects.

    Args:
        rng: The only source of chance: equal generators give equal scenes.
        shape: Height and width in pixels.

    Returns:
        The picture with its depth.
    """
    camera = Camera(shape, rng.uniform(0.36, 0.5) * shape[0], rng.uniform(1.2, 1.6))
    image, room = _draw_room(rng, camera)
    depth = room.copy()
    light = rng.uniform(-1, 1, 2) + (0, -1.2)
    count = rng.integers(3, 7)
    kinds = [OBJECTS[k] for k in rng.permutation(len(OBJECTS))[:count]]
    placed = [(*_place(rng, camera, kind, room), kind) for kind in kinds]
    for distance, scale, place, kind in sorted(placed, key=lambda item: -item[0]):
        alpha = draw_object(rng, image, kind, scale, place, light)
        depth[alpha >= 0.5] = distance
    # It is the darker and the paler the farther.
    clear = np.exp(-rng.uniform(0.04, 0.09) * depth)[..., None]
    haze = rng.uniform(0.25, 0.6) * rng.uniform(0.9, 1.1, 3)
    image = image * clear + haze * (1 - clear)
    unknown = _unknown(rng, image, depth == room)
    return DepthScene(finish(rng, image), np.where(unknown, 0.0, depth))


def motorcycle() -> DepthScene:
    """Return scikit-image's motorcycle, a photograph of 500 x 741 pixels, with its true depth.

    Depth is focal length times baseline by the disparity, to which the distance of the principal
    points is added; the constants are `MOTORCYCLE`. What has no disparity is unknown. It is of
    Middlebury's stereo benchmark (Scharstein et al., 2014).
    """
    image, _, disparity = skimage.data.stereo_motorcycle()
    focal, baseline, offset = MOTORCYCLE
    known = np.isfinite(disparity)
    return DepthScene(
        image, np.where(known, focal * baseline / (np.where(known, disparity, 0) + offset), 0.0)
    )
