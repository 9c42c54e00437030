"""Draws the outlines of what has fine edges: hair, nets, leaves, horses; and smoke.

Points are columns and rows in pixels from the upper left corner. Whatever is thin has a width in
pixels, all else one relative to the picture's shorter side.
"""

import dataclasses
import itertools

import numpy as np
from scipy import ndimage

from .scenes import fractal_noise
from .shapes import bar, draw_horse, ellipse, toothed_leaf

# Samples of a pixel's coverage a side.
SUPERSAMPLING = 8
# Rows of pixels that are drawn at a time, which bounds the memory of large pictures.
BAND = 64
# Widths in pixels of the thinnest and the widest hair.
HAIR = (0.3, 2.0)
# Either one polygon (n, 2) or several of as many points (m, n, 2), to add (True) or to cut.
Layers = list[tuple[bool, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Holds what an alpha is made of.

    Args:
        layers: All that is opaque.
        color: Names the colours of the whole, 'hair' for example.
        parts: What is painted over it in other colours, each with their name.
    """

    layers: Layers
    color: str
    parts: list[tuple[str, Layers]] = dataclasses.field(default_factory=list)


def _crossings(
    polygons: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where rows of samples enter (+1) and leave (-1) polygons.

    Args:
        polygons: (m, n, 2), where samples have integer coordinates.
        shape: Rows and columns of samples.

    Returns:
        Row, column (that of the first sample after the crossing) and sign of every crossing.
    """
    following = np.roll(polygons, -1, axis=1)
    x, y = polygons[..., 0], polygons[..., 1]
    area = (x * following[..., 1] - following[..., 0] * y).sum(1, keepdims=True)
    sign = (np.sign(y - following[..., 1]) * np.sign(area)).ravel().astype(np.int32)
    ends = np.stack([polygons, following]).reshape(2, -1, 2)
    upper, lower = np.where(ends[0, :, 1:] <= ends[1, :, 1:], ends, ends[::-1])
    first = np.ceil(upper[:, 1]).clip(0, shape[0]).astype(np.int64)
    count = np.ceil(lower[:, 1]).clip(0, shape[0]).astype(np.int64) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (lower - upper)[edge]
    at = upper[edge, 0] + (row - upper[edge, 1]) * slope[:, 0] / slope[:, 1]
    return row, np.ceil(at).clip(0, shape[1]).astype(np.int64), sign[edge]


def sample_coverage(layers: Layers, shape: tuple[int, int]) -> np.ndarray:
    """Return which part of every pixel is covered, by 8 x 8 samples of it.

    A sample counts where its point lies in a polygon. (PIL also draws a polygon's edge, which makes
    the thinnest hairs a quarter wider.)

    Args:
        layers: What to add and to cut, in order. Polygons do not cross themselves, and may overlap.
        shape: Height and width in pixels.

    Returns:
        Float array (height, width) in [0, 1].
    """
    height, width = shape
    samples = height * SUPERSAMPLING, width * SUPERSAMPLING
    # Equal operations in a row are done at once.
    steps = []
    for adds, group in itertools.groupby(layers, lambda layer: layer[0]):
        found = [
            _crossings(points.reshape(-1, *points.shape[-2:]) * SUPERSAMPLING - 0.5, samples)
            for _, points in group
        ]
        steps.append((adds, *(np.concatenate(column) for column in zip(*found, strict=True))))
    bands = []
    for top in range(0, samples[0], BAND * SUPERSAMPLING):
        rows = min(BAND * SUPERSAMPLING, samples[0] - top)
        canvas = np.zeros((rows, samples[1]), bool)
        for adds, row, column, sign in steps:
            here = (row >= top) & (row < top + rows)
            winding = np.zeros((rows, samples[1] + 1), np.int32)
            np.add.at(winding, (row[here] - top, column[here]), sign[here])
            inside = np.cumsum(winding, axis=1, dtype=np.int32)[:, :-1] != 0
            canvas = canvas | inside if adds else canvas & ~inside
        parts = canvas.reshape(rows // SUPERSAMPLING, SUPERSAMPLING, width, SUPERSAMPLING)
        bands.append(parts.mean((1, 3)))
    return np.concatenate(bands)


def ribbons(lines: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return polylines of varying width as quadrilaterals without gaps.

    Args:
        lines: (m, n, 2) points of m lines.
        widths: Their widths, which broadcast to (m, n).

    Returns:
        (m * (n - 1), 4, 2) points.
    """
    along = np.gradient(lines, axis=1)
    along /= np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-9)
    aside = np.stack([-along[..., 1], along[..., 0]], -1)
    aside = aside * np.broadcast_to(widths, lines.shape[:2])[..., None] / 2
    left, right = lines + aside, lines - aside
    quads = np.stack([left[:, :-1], left[:, 1:], right[:, 1:], right[:, :-1]], 2)
    return quads.reshape(-1, 4, 2)


def _strands(
    rng: np.random.Generator,
    roots: np.ndarray,
    angles: np.ndarray,
    lengths: np.ndarray,
    curl: float,
    weight: float,
    tufts: int = 5,
) -> np.ndarray:
    """Grow tapered hairs, of which neighbours bend alike.

    Args:
        rng: Source of their bends and widths.
        roots: (n, 2) points.
        angles: Their directions (n,) in radians.
        lengths: (n,) in pixels.
        curl: By how many radians they bend.
        weight: By how much they turn downwards.
        tufts: Hairs that bend alike.

    Returns:
        Quadrilaterals (m, 4, 2).
    """
    count, steps = len(roots), 9
    tuft = np.arange(count) // tufts
    shared = rng.normal(0, 1, (3, tuft[-1] + 1))[:, tuft]
    bend = curl * (shared[0] + 0.35 * rng.standard_normal(count))
    wave = 0.5 * curl * shared[1]
    part = np.linspace(0, 1, steps + 1)
    heading = angles[:, None] + bend[:, None] * part
    heading += wave[:, None] * np.sin(2 * np.pi * (part + shared[2][:, None]))
    # Downwards is at a right angle: it turns there, most where it is level.
    heading += weight * part * np.cos(heading)
    moves = np.stack([np.cos(heading), np.sin(heading)], -1)[:, :-1]
    moves *= lengths[:, None, None] / steps
    lines = roots[:, None] + np.concatenate([np.zeros((count, 1, 2)), np.cumsum(moves, 1)], 1)
    thick = rng.uniform(2 * HAIR[0], HAIR[1], count) * rng.uniform(0.4, 1, count)
    thick = np.maximum(thick, HAIR[0])[:, None]
    return ribbons(lines, thick + (HAIR[0] - thick) * part**1.5)


def _outline(
    rng: np.random.Generator, center: np.ndarray, radii: tuple[float, float], rough: float
) -> np.ndarray:
    """Return a wavy ellipse (96, 2), whose radius varies by the share `rough`."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    order = np.arange(2, 8)
    phase, size = rng.uniform(0, 2 * np.pi, (6, 1)), rng.normal(0, 1, (6, 1)) / order[:, None]
    radius = 1 + rough * (size * np.sin(order[:, None] * angle + phase)).sum(0)
    return center + np.stack([np.cos(angle), np.sin(angle)], 1) * radii * radius[:, None]


def _roots(
    rng: np.random.Generator, outline: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return points in order along a closed outline, and the directions outwards in radians."""
    at = np.sort(rng.uniform(0, len(outline), count))
    left = np.floor(at).astype(int) % len(outline)
    right = (left + 1) % len(outline)
    points = outline[left] + (at % 1)[:, None] * (outline[right] - outline[left])
    along = outline[right] - outline[left]
    x, y = outline.T
    turn = np.sign((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
    return points, np.arctan2(-along[:, 0] * turn, along[:, 1] * turn)


def draw_portrait(rng: np.random.Generator, shape: tuple[int, int]) -> Drawing:
    """Draw a head with loose hair above shoulders."""
    height, width = shape
    unit = min(shape)
    radius = unit * rng.uniform(0.17, 0.22)
    head = np.array([width * rng.uniform(0.4, 0.6), height - unit * rng.uniform(0.42, 0.5)])
    wind = rng.uniform(-0.6, 0.6)
    face = ellipse(head + (0, 0.1 * radius), (0.72 * radius, radius))
    mass = _outline(rng, head - (0, 0.12 * radius), (1.02 * radius, 1.12 * radius), 0.06)
    chest = ellipse((head[0], height + 0.05 * unit), (unit * rng.uniform(0.3, 0.4), 0.24 * unit))
    neck = bar(head, (head[0], height - 0.1 * unit), 0.75 * radius)
    layers: Layers = [(True, part) for part in (mass, face, chest, neck)]
    count = int(rng.integers(220, 420))
    roots, angles = _roots(rng, mass, count)
    # The chin has none.
    kept = roots[:, 1] < head[1] + 0.75 * radius
    roots, angles = roots[kept], angles[kept]
    long = rng.uniform(0.6, 2.0) * radius
    lengths = long * rng.uniform(0.3, 1, len(roots))
    angles = angles + wind + rng.normal(0, 0.35, len(roots))
    hair = _strands(rng, roots, angles, lengths, rng.uniform(0.2, 1.1), rng.uniform(0.2, 1.6))
    layers.append((True, hair))
    return Drawing(
        layers,
        'hair',
        [('skin', [(True, neck), (True, face)]), ('cloth', [(True, chest)])],
    )


def draw_fur(rng: np.random.Generator, shape: tuple[int, int]) -> Drawing:
    """Draw a furry body."""
    unit = min(shape)
    radii = unit * rng.uniform(0.2, 0.3), unit * rng.uniform(0.2, 0.3)
    center = np.array(shape[::-1]) * rng.uniform(0.42, 0.58, 2)
    body = _outline(rng, center, radii, 0.12)
    count = int(rng.integers(350, 650))
    roots, angles = _roots(rng, body, count)
    lengths = unit * rng.uniform(0.07, 0.16) * rng.uniform(0.3, 1, count)
    angles = angles + rng.uniform(-0.7, 0.7) + rng.normal(0, 0.25, count)
    hair = _strands(rng, roots, angles, lengths, rng.uniform(0.1, 0.7), rng.uniform(0, 0.9))
    return Drawing([(True, body), (True, hair)], 'hair')


def draw_racket(rng: np.random.Generator, shape: tuple[int, int]) -> Drawing:
    """Draw a hoop with strings and a handle."""
    unit = min(shape)
    long, short = unit * rng.uniform(0.28, 0.33), unit * rng.uniform(0.2, 0.27)
    thick = unit * rng.uniform(0.035, 0.06)
    width = rng.uniform(0.5, 1.6)
    space = max(unit * rng.uniform(0.025, 0.055), 3 * width)
    lines = []
    for reach, across, turned in ((long, short, False), (short, long, True)):
        at = np.arange(-across + space / 2, across, space)
        half = reach * np.sqrt(1 - (at / across) ** 2)
        ends = np.stack([np.stack([-half, at], 1), np.stack([half, at], 1)], 1)
        lines.append(ends[..., ::-1] if turned else ends)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    place = np.array(shape[::-1]) / 2 - np.array([0.1 * unit, 0]) @ turn

    def put(points: np.ndarray) -> np.ndarray:
        return points @ turn + place

    grip = put(bar((long, 0), (long + unit, 0), thick * 2))
    hoop = put(ellipse((0, 0), (long + thick / 2, short + thick / 2)))
    hole = put(ellipse((0, 0), (long - thick / 2, short - thick / 2)))
    strings = ribbons(put(np.concatenate(lines)), np.array(width))
    frame: Layers = [(True, hoop), (False, hole), (True, grip)]
    return Drawing([*frame, (True, strings)], 'cord', [('cloth', frame)])


def draw_fence(rng: np.random.Generator, shape: tuple[int, int]) -> Drawing:
    """Draw a mesh of bent wires between posts, with a hole."""
    height, width = shape
    unit = min(shape)
    side = unit * rng.uniform(0.07, 0.13)
    wire = rng.uniform(0.4, 1.7)
    top = height * rng.uniform(0.1, 0.3)
    columns = np.arange(-side, width + 2 * side, side)
    rows = np.arange(top, height + side, side / 2)
    sag = rng.uniform(0, 0.05) * unit * np.sin(np.pi * columns / width * rng.uniform(0.8, 2))
    lines = []
    for k, column in enumerate(columns):
        # Neighbours touch where both bend.
        x = column + np.where((np.arange(len(rows)) + k) % 2, 0.5, -0.5) * side
        x = x + rng.normal(0, 0.03 * side, len(rows))
        lines.append(np.stack([x, rows + sag[k]], 1))
    mesh = ribbons(np.array(lines), np.array(wire))
    hole = np.array([width, height]) * rng.uniform(0.25, 0.75, 2)
    mesh = mesh[np.linalg.norm(mesh.mean(1) - hole, axis=1) > unit * rng.uniform(0, 0.25)]
    posts: Layers = []
    for foot in (width * rng.uniform(0.05, 0.3), width * rng.uniform(0.7, 0.95)):
        lean = rng.uniform(-0.04, 0.04) * unit
        head = top - unit * rng.uniform(0.03, 0.08)
        thick = unit * rng.uniform(0.08, 0.12)
        posts.append((True, bar((foot + lean, head), (foot, height * 1.1), thick)))
    rail = np.stack([columns, top + sag], 1)[None]
    posts.append((True, ribbons(rail, np.array(max(3 * wire, 0.02 * unit)))))
    return Drawing([(True, mesh), *posts], 'cord', [('wood', posts)])


def draw_web(rng: np.random.Generator, shape: tuple[int, int]) -> Drawing:
    """Draw a spider's web in the fork of two branches."""
    height, width = shape
    unit = min(shape)
    hub = np.array([width, height]) * rng.uniform(0.42, 0.58, 2)
    spokes = int(rng.integers(13, 22))
    angle = (np.arange(spokes) + rng.uniform(-0.25, 0.25, spokes)) * 2 * np.pi / spokes
    out = np.stack([np.cos(angle), np.sin(angle)], 1)
    reach = unit * rng.uniform(0.33, 0.45) * rng.uniform(0.85, 1.15, spokes)
    radials = np.stack([np.broadcast_to(hub, out.shape), hub + out * reach[:, None] * 1.4], 1)
    turns = int(rng.integers(9, 16))
    after = np.roll(np.arange(spokes), -1)
    arcs = []
    for ring in np.linspace(0.12, 1, turns):
        start, end = (hub + out[k] * (reach[k] * ring)[:, None] for k in (np.arange(spokes), after))
        middle = (start + end) / 2 + (hub - (start + end) / 2) * 0.06
        arcs.append(np.stack([start, middle, end], 1))
    thread = rng.uniform(0.35, 0.9)
    threads = [
        ribbons(radials, np.array(min(1.4 * thread, HAIR[1]))),
        ribbons(np.concatenate(arcs), np.array(thread)),
    ]
    branches: Layers = []
    first = rng.uniform(0, 2 * np.pi)
    for turn in (first, first + rng.uniform(1.6, 2.6)):
        away = np.array([np.cos(turn), np.sin(turn)])
        aside = np.array([-away[1], away[0]])
        part = np.linspace(-1, 1, 12)[:, None]
        line = hub + away * unit * 0.42 + aside * part * unit * 0.9
        line = line + rng.normal(0, 0.012 * unit, line.shape)
        thick = unit * rng.uniform(0.06, 0.11) * np.linspace(1, rng.uniform(0.3, 0.8), 12)
        branches.append((True, ribbons(line[None], thick)))
    spider = ellipse(hub, (unit * 0.035, unit * 0.045))
    layers: Layers = [*((True, line) for line in threads), *branches, (True, spider)]
    return Drawing(layers, 'cord', [('wood', [*branches, (True, spider)])])


def draw_branch(rng: np.random.Generator, shape: tuple[int, int]) -> Drawing:
    """Draw twigs with toothed leaves and thin tendrils."""
    unit = min(shape)
    wood: list[np.ndarray] = []
    leaves: list[np.ndarray] = []
    tips: list[np.ndarray] = []

    def grow(start: np.ndarray, angle: float, length: float, thick: float, depth: int) -> None:
        part = np.linspace(0, 1, 8)
        heading = angle + rng.uniform(-0.5, 0.5) * part
        moves = np.stack([np.cos(heading), np.sin(heading)], 1)[1:] * length / 7
        line = start + np.vstack([np.zeros(2), np.cumsum(moves, 0)])
        wood.append(ribbons(line[None], thick * (1 - 0.7 * part)))
        for k, side in ((3, 1), (4, -1), (6, 1), (6, -1), (7, 0)):
            if depth or k > 4:
                turned = heading[k] + side * rng.uniform(0.5, 1.2) + rng.uniform(-0.2, 0.2)
                size = unit * rng.uniform(0.1, 0.24)
                leaves.append(toothed_leaf(rng, line[k], turned, size))
        tips.append(line[2:])
        if depth < 2:
            for k, side in ((2, -1), (4, 1)):
                turned = heading[k] + side * rng.uniform(0.4, 1.0)
                grow(line[k], turned, length * rng.uniform(0.5, 0.7), thick * 0.55, depth + 1)

    center, angle = np.array(shape[::-1]) / 2, rng.uniform(0, 2 * np.pi)
    away = np.array([np.cos(angle), np.sin(angle)])
    root = center - away * 0.62 * unit
    grow(root, angle, unit * rng.uniform(0.55, 0.75), unit * rng.uniform(0.05, 0.09), 0)
    points = np.concatenate(tips)
    roots = points[rng.integers(0, len(points), int(rng.integers(25, 60)))]
    headings = rng.uniform(0, 2 * np.pi, len(roots))
    lengths = unit * rng.uniform(0.05, 0.25, len(roots))
    tendrils = _strands(rng, roots, headings, lengths, rng.uniform(0.4, 1.6), 0, tufts=1)
    trunk: Layers = [(True, piece) for piece in wood]
    return Drawing([*trunk, (True, np.array(leaves)), (True, tendrils)], 'leaf', [('wood', trunk)])


def draw_hairy_horse(rng: np.random.Generator, shape: tuple[int, int]) -> Drawing:
    """Draw the outline of a horse, with a coat of short hairs."""
    height, width = shape
    unit = min(shape)
    scale = unit * rng.uniform(0.55, 0.75)
    tilt = rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [np.sin(tilt), -np.cos(tilt)]])
    turn[:, 0] *= rng.choice([-1, 1])
    place = np.array([width * rng.uniform(0.42, 0.58), (height + scale) / 2])
    (_, polygons), *_ = draw_horse(rng)
    drawn: Layers = [(adds, points @ turn.T * scale + place) for adds, points in polygons]
    outline = drawn[0][1]
    # Points are evenly spaced along it.
    closed = np.vstack([outline, outline[:1]])
    passed = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    at = np.linspace(0, passed[-1], 400, endpoint=False)
    even = np.stack([np.interp(at, passed, closed[:, k]) for k in range(2)], 1)
    count = int(rng.integers(400, 700))
    roots, angles = _roots(rng, even, count)
    lengths = unit * rng.uniform(0.015, 0.045) * rng.uniform(0.3, 1, count)
    angles = angles + rng.uniform(-0.5, 0.5) + rng.normal(0, 0.3, count)
    coat = _strands(rng, roots, angles, lengths, 0.4, rng.uniform(0.3, 1.2))
    return Drawing([*drawn, (True, coat)], 'hair')


# What may be drawn of each kind but smoke.
DRAWINGS = {
    'hair': (draw_portrait, draw_fur),
    'net': (draw_racket, draw_fence, draw_web),
    'leaf': (draw_branch,),
    'horse': (draw_hairy_horse,),
}


def draw_smoke(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw a plume of smoke.

    Args:
        rng: The only source of chance.
        shape: Height and width in pixels.

    Returns:
        Its opacity, float (height, width), at most .92, and 0 at some pixels.
    """
    height, width = shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    warp = [fractal_noise(rng, shape, 3) * rng.uniform(0.03, 0.07) for _ in range(2)]
    x, y = x + warp[0], y + warp[1]
    rise = 1.02 - y
    sway = rng.uniform(0.04, 0.12) * np.sin(rise * rng.uniform(3, 7) + rng.uniform(0, 6.3))
    axis = rng.uniform(0.38, 0.62) + sway + rng.uniform(-0.2, 0.2) * rise
    spread = rng.uniform(0.05, 0.09) + rng.uniform(0.12, 0.25) * np.maximum(rise, 0)
    body = 1 - ((x - axis) / spread) ** 2 / 2
    body = body - np.maximum(rise - rng.uniform(0.7, 0.9), 0) * 5
    rows, columns = np.mgrid[:height, :width]
    swirl = [part * 2.5 * min(shape) for part in warp]
    noise = fractal_noise(rng, shape, 5)
    noise = ndimage.map_coordinates(
        noise, [rows + swirl[1], columns + swirl[0]], order=1, mode='reflect'
    )
    density = np.maximum(body, 0) * np.exp(0.55 * noise) - 0.08
    opacity = 1 - np.exp(-rng.uniform(0.8, 1.8) * np.maximum(density, 0))
    return opacity / opacity.max() * rng.uniform(0.5, 0.92)
