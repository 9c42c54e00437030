"""Draws the shapes of objects, and makes masks and polygons of them.

A shape is a list of parts, each the key of its texture and the polygons to draw in order. The
frame is the shape's own: the origin on the ground below its middle, x to the right, y up, about
one unit tall. Polygons are drawn with PIL at `SUPERSAMPLING` times the image's resolution; the
mean over a pixel is its coverage.
"""

import functools
import itertools

import numpy as np
import skimage.data
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage import measure

SUPERSAMPLING = 4

Point = tuple[float, float] | np.ndarray  # x, y
Polygons = list[tuple[bool, np.ndarray]]  # (True adds | False cuts, (n, 2) points)
Shape = list[tuple[str, Polygons]]


def coverage(polygons: Polygons, affine: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Draw polygons with antialiased edges.

    Args:
        polygons: What to add and to cut, in order.
        affine: (2, 3) matrix from the shape's frame to pixels.
        shape: Height and width in pixels.

    Returns:
        Float array (height, width): the fraction of every pixel that is covered.
    """
    canvas = Image.new('L', (shape[1] * SUPERSAMPLING, shape[0] * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for adds, points in polygons:
        # PIL puts integer coordinates at the pixels' centres.
        at = (points @ affine[:, :2].T + affine[:, 2]) * SUPERSAMPLING - 0.5
        pen.polygon([tuple(point) for point in at.tolist()], fill=255 * adds)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float64) / 255


def _boundary_loops(mask: np.ndarray) -> list[np.ndarray]:
    """Trace the pixel edges around a 4-connected mask: the outline first, then its holes."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # Edges run with the mask on their right. Directions: 0 east, 1 south, 2 west, 3 north.
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    leaving: dict[tuple[int, int], list[int]] = {}
    for direction, (neighbour, (dx, dy)) in enumerate(zip(neighbours, starts, strict=True)):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            leaving.setdefault((x + dx, y + dy), []).append(direction)
    loops = []
    # They are sorted by rows, so that the first edge left is the outline's topmost.
    for start in sorted(leaving, key=lambda point: point[::-1]):
        while leaving[start]:
            point, direction, corners = start, -1, []
            while leaving[point]:
                choices = leaving[point]
                # Where two pixels touch at a corner, the right turn stays with the own pixel.
                right = (direction + 1) % 4
                turn = right if direction >= 0 and right in choices else choices[0]
                choices.remove(turn)
                if turn != direction:
                    corners.append(point)
                direction = turn
                point = (point[0] + steps[turn][0], point[1] + steps[turn][1])
            loops.append(np.array(corners, float))
    return loops


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Convert a mask to COCO polygons that pycocotools decodes to the same mask.

    A COCO polygon has no holes. Each hole is therefore joined to the outline by a bridge of zero
    width, walked there and back, which the even-odd rule of the decoder ignores.

    Args:
        mask: bool (height, width).

    Returns:
        One polygon [x0, y0, x1, y1, ...] in pixels for every 4-connected part of the mask, along
        the edges of its pixels.
    """
    parts, _ = ndimage.label(mask)
    polygons = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
        outline, *holes = _boundary_loops(parts[rows, columns] == index)
        while holes:
            # The nearest hole comes first: no third one can then lie in the bridge's way.
            distances = [cdist(outline, hole) for hole in holes]
            nearest = int(np.argmin([distance.min() for distance in distances]))
            at, to = np.unravel_index(np.argmin(distances[nearest]), distances[nearest].shape)
            hole = np.roll(holes.pop(nearest), -to, axis=0)
            outline = np.vstack([outline[: at + 1], hole, hole[:1], outline[at:]])
        polygons.append((outline + (columns.start, rows.start)).ravel().tolist())
    return polygons


def bar(start: Point, end: Point, width: float) -> np.ndarray:
    """Return the rectangle of the given width around a segment, as (4, 2) points."""
    a, b = np.array(start, float), np.array(end, float)
    along = (b - a) / max(np.hypot(*(b - a)), 1e-9)
    aside = np.array([-along[1], along[0]]) * width / 2
    cap = along * width / 4
    return np.array([a + aside - cap, b + aside + cap, b - aside + cap, a - aside - cap])


def bars(points: np.ndarray, width: float) -> Polygons:
    """Return a line through the points, drawn as one bar a segment."""
    return [(True, bar(a, b, width)) for a, b in itertools.pairwise(points)]


def ellipse(center: Point, radii: tuple[float, float]) -> np.ndarray:
    """Return an ellipse as (48, 2) points."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.array(center) + np.stack([np.cos(angle), np.sin(angle)], 1) * radii


def draw_bicycle(rng: np.random.Generator) -> Shape:
    """Draw two spoked wheels and a frame of tubes."""
    radius, tube = rng.uniform(0.3, 0.36), rng.uniform(0.04, 0.055)
    reach = rng.uniform(0.46, 0.54)
    rear, front = (-reach, radius), (reach, radius)
    count, first = rng.integers(5, 9), rng.uniform(0, np.pi)
    wheels: Polygons = []
    for hub in (rear, front):
        inner = radius - rng.uniform(0.055, 0.075)
        wheels += [(True, ellipse(hub, (radius, radius))), (False, ellipse(hub, (inner, inner)))]
        for angle in first + np.arange(count) * 2 * np.pi / count:
            tip = np.array(hub) + inner * np.array([np.cos(angle), np.sin(angle)])
            wheels.append((True, bar(hub, tuple(tip), 0.028)))
        wheels.append((True, ellipse(hub, (0.05, 0.05))))
    crank, seat = (-0.06, radius - 0.02), (-0.2 + rng.uniform(-0.04, 0.04), 0.82)
    head = (0.33 + rng.uniform(-0.04, 0.04), 0.8)
    frame = [rear, crank, seat, rear], [seat, head, crank], [front, head, (head[0] - 0.03, 0.96)]
    tubes = [piece for line in frame for piece in bars(np.array(line), tube)]
    tubes += bars(np.array([(head[0] - 0.03, 0.96), (head[0] + 0.12, 0.99)]), tube)
    saddle = [(seat[0] - 0.13, 0.9), (seat[0] + 0.11, 0.9), (seat[0] + 0.02, 0.83)]
    tubes += [(True, bar(seat, (seat[0] - 0.02, 0.88), tube)), (True, np.array(saddle))]
    tubes.append((True, ellipse(crank, (0.075, 0.075))))
    return [('tyre', wheels), ('frame', tubes)]


@functools.cache
def _horse_contours() -> tuple[np.ndarray, ...]:
    silhouette = np.pad(~skimage.data.horse(), 1).astype(float)
    loops = sorted(measure.find_contours(silhouette, 0.5), key=len, reverse=True)
    rows, columns = np.nonzero(silhouette)
    middle, ground, height = columns.mean(), rows.max(), np.ptp(rows)
    loops = [measure.approximate_polygon(loop, 0.5) for loop in loops if len(loop) > 40]
    return tuple((loop[:, ::-1] - (middle, ground)) * (1, -1) / height for loop in loops)


def draw_horse(rng: np.random.Generator) -> Shape:
    """Draw the silhouette of a horse, stretched and sheared a little."""
    change = np.array([[rng.uniform(0.85, 1.15), 0.0], [rng.uniform(-0.12, 0.12), 1.0]])
    # The first loop is the outline, whatever follows lies within it.
    return [('fur', [(k == 0, loop @ change) for k, loop in enumerate(_horse_contours())])]


def draw_plant(rng: np.random.Generator) -> Shape:
    """Draw a pot with branching stems and toothed leaves."""
    pot_top, mouth = rng.uniform(0.22, 0.3), rng.uniform(0.15, 0.2)
    rim = pot_top - 0.05
    pot = [(-mouth * 0.65, 0), (mouth * 0.65, 0), (mouth * 0.9, rim), (-mouth * 0.9, rim)]
    pot_parts: Polygons = [
        (True, np.array(pot)),
        (True, bar((-mouth, pot_top - 0.025), (mouth, pot_top - 0.025), 0.06)),
    ]
    leaves: Polygons = []

    def grow(start: np.ndarray, angle: float, length: float, depth: int) -> None:
        bend = rng.uniform(-0.5, 0.5)
        steps = angle + bend * np.array([-0.5, 0.0, 0.5])
        moves = np.stack([np.cos(steps), np.sin(steps)], 1) * length / 3
        line = np.vstack([start, start + np.cumsum(moves, 0)])
        leaves.extend(bars(line, 0.032 - 0.005 * depth))
        for point, side in ((line[2], 1), (line[2], -1), (line[3], 0)):
            leaf_angle = angle + side * rng.uniform(0.6, 1.1) + rng.uniform(-0.2, 0.2)
            leaves.append((True, toothed_leaf(rng, point, leaf_angle, rng.uniform(0.13, 0.22))))
        if depth < 1:
            for side in (-1, 1):
                grow(line[2], angle + side * rng.uniform(0.4, 0.8), length * 0.55, depth + 1)

    for angle in np.linspace(0.75, np.pi - 0.75, rng.integers(3, 6)):
        start = np.array([-np.cos(angle) * -0.05, pot_top - 0.03])
        grow(start, angle + rng.uniform(-0.12, 0.12), rng.uniform(0.38, 0.58), 0)
    return [('leaf', leaves), ('pot', pot_parts)]


def toothed_leaf(
    rng: np.random.Generator, stalk: np.ndarray, angle: float, length: float
) -> np.ndarray:
    """Return a pointed leaf with a toothed edge, as points; `angle` is in radians."""
    along = np.linspace(0, 1, 13)
    width = 0.22 * np.sin(np.pi * along**0.8) * np.where(np.arange(13) % 2, 1.15, 0.8)
    width *= rng.uniform(0.75, 1.25)
    outline = np.vstack([np.stack([along, width], 1), np.stack([along, -width], 1)[-2:0:-1]])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return stalk + outline * length @ turn


def draw_chair(rng: np.random.Generator) -> Shape:
    """Draw a chair of thin bars with a slatted back."""
    thick, half, seat = rng.uniform(0.04, 0.055), rng.uniform(0.2, 0.25), rng.uniform(0.42, 0.5)
    shift, drop = rng.uniform(0.08, 0.16), rng.uniform(0.06, 0.1)  # the front, seen obliquely
    lean = rng.uniform(-0.06, 0.0)
    wood: Polygons = []
    for side in (-half, half):
        wood += bars(np.array([(side, drop), (side, seat), (side + lean, 1.0)]), thick)
        wood.append((True, bar((side + shift, 0), (side + shift, seat - drop), thick)))
        rung = seat * 0.45
        wood.append((True, bar((side, rung), (side + shift, rung - drop), thick * 0.7)))
    back, front = seat, seat - drop
    corners = [(-half, back), (half, back), (half + shift, front), (-half + shift, front)]
    wood.append((True, np.array(corners) + (0, thick / 2)))
    wood.append((True, bar(corners[3], corners[2], thick)))
    low = seat * 0.5 - drop
    wood.append((True, bar((-half + shift, low), (half + shift, low), thick * 0.7)))
    wood.append((True, bar((-half + lean, 0.98), (half + lean, 0.98), thick * 1.2)))
    slats = rng.integers(3, 5)
    if rng.random() < 0.5:
        for part in np.linspace(0, 1, slats, endpoint=False)[1:]:
            y, x = seat + (1 - seat) * part, lean * part
            wood.append((True, bar((x - half, y), (x + half, y), thick * 0.9)))
    else:
        for x in np.linspace(-half, half, slats + 1)[1:-1]:
            wood.append((True, bar((x, seat), (x + lean, 0.98), thick * 0.75)))
    return [('wood', wood)]


def draw_ball(rng: np.random.Generator) -> Shape:
    """Draw a ball with pale panels between meridians."""
    radius = 0.5
    turn = rng.uniform(0, np.pi)
    turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 25)
    panels: Polygons = []
    first = rng.uniform(-1.3, -0.9)
    for start in (first, first + 1.3):
        sides = [
            np.stack([np.sin(longitude) * np.cos(latitude), np.sin(latitude)], 1)
            for longitude in (start, start + 0.55)
        ]
        outline = np.vstack([sides[0], sides[1][::-1]]) * radius * 0.995
        panels.append((True, outline @ turned + (0, radius)))
    return [('skin', [(True, ellipse((0, radius), (radius, radius)))]), ('panel', panels)]


def draw_kite(rng: np.random.Generator) -> Shape:
    """Draw a torn kite: ragged edges, two holes and a thin tail with bows."""
    wing, cross = rng.uniform(0.32, 0.4), rng.uniform(0.62, 0.72)
    top, low = np.array([0.0, 1.0]), np.array([0.0, 0.28])
    halves: list[Polygons] = []
    for side in (-1.0, 1.0):
        tip = np.array([side * wing, cross])
        edge = []
        for a, b, depth in ((top, tip, 0.025), (tip, low, 0.075)):
            part = np.linspace(0, 1, 12)[:, None]
            line = a + (b - a) * part
            inward = (np.array([0.0, cross - 0.05]) - line) * depth / 0.3
            teeth = rng.uniform(0, 1, (12, 1)) * (np.arange(12)[:, None] % 2)
            edge.append(line + inward * teeth)
        hole = ellipse((side * wing * 0.42, cross - 0.05), (wing * 0.2, rng.uniform(0.05, 0.09)))
        halves.append([(True, np.vstack(edge)), (False, hole)])
    part = np.linspace(0, 1, 18)
    sway, waves = rng.uniform(0.06, 0.12), rng.uniform(1.0, 1.8)
    tail = np.stack(
        [sway * np.sin(part * waves * 2 * np.pi) * part**0.5, 0.3 - part * rng.uniform(0.45, 0.6)],
        1,
    )
    tail_parts = bars(tail, 0.026)
    for k in (6, 11, 16):
        x, y = tail[k]
        for side in (-1, 1):
            bow = [(x, y), (x + side * 0.085, y + 0.05), (x + side * 0.085, y - 0.05)]
            tail_parts.append((True, np.array(bow)))
    return [('left', halves[0]), ('right', halves[1] + tail_parts)]


def draw_vase(rng: np.random.Generator) -> Shape:
    """Draw a vase with two open handles and a painted band."""
    foot, belly = rng.uniform(0.12, 0.17), rng.uniform(0.24, 0.31)
    neck, lip = rng.uniform(0.07, 0.1), rng.uniform(0.12, 0.17)
    height = np.linspace(0, 1, 41)
    knots = [0, 0.08, rng.uniform(0.36, 0.46), 0.74, 0.86, 1.0]
    radius = np.interp(height, knots, [foot, foot * 0.85, belly, neck * 1.1, neck, lip])
    radius = ndimage.gaussian_filter1d(radius, 1.5, mode='nearest')
    right = np.stack([radius, height], 1)
    body = np.vstack([right, right[::-1] * (-1, 1)])
    angle = np.linspace(-0.62, 0.55, 12) * np.pi
    reach, handles = rng.uniform(0.15, 0.2), []
    for side in (-1, 1):
        arc = np.stack([side * (0.12 + reach * np.cos(angle)), 0.72 + 0.16 * np.sin(angle)], 1)
        handles += bars(arc, 0.045)
    low = rng.uniform(0.25, 0.4)
    inside = (height > low) & (height < low + rng.uniform(0.1, 0.18))
    band = np.vstack([right[inside], right[inside][::-1] * (-1, 1)])
    return [('glaze', [(True, body), *handles]), ('band', [(True, band)])]
