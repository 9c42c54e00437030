"""Mattes side by side, and the region on which the pictures zoom."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from sapa_mm.visualization.matting import FRAME, LEAST_ZOOM, alpha_to_rgb, draw_mattes, worst_region

DPI = 150
PANEL = 2.4  # inches


def brute_force(error: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the window with the largest sum; the first of several, row by row."""
    height, width = (min(side, length) for length in error.shape)
    best, place = -1.0, (0, 0)
    for top in range(error.shape[0] - height + 1):
        for left in range(error.shape[1] - width + 1):
            total = float(error[top : top + height, left : left + width].sum())
            if total > best:
                best, place = total, (top, left)
    return place


@pytest.mark.parametrize('shape', [(9, 13), (13, 9), (6, 6), (1, 7), (5, 1)], ids=str)
@pytest.mark.parametrize('side', [1, 3, 6, 20])
def test_worst_region(shape, side):
    for seed in range(5):
        # Integers are summed without rounding.
        error = np.random.default_rng(seed).integers(0, 4, shape)
        top, left = brute_force(error, side)
        height, width = (min(side, length) for length in shape)
        expected = (slice(top, top + height), slice(left, left + width))
        assert worst_region(error, side) == expected
        assert worst_region(np.asfortranarray(error[::-1])[::-1], side) == expected


def test_an_error_at_the_last_pixel():
    error = np.zeros((10, 12))
    error[9, 11] = 1
    assert worst_region(error, 4) == (slice(6, 10), slice(8, 12))
    assert worst_region(np.zeros((10, 12)), 4) == (slice(0, 4), slice(0, 4))


def test_shades():
    alpha = np.uint8([[0, 128, 255]])
    assert alpha_to_rgb(alpha).tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def spans(inside: np.ndarray, least: int) -> list[slice]:
    """Return the runs of True that are at least so long."""
    edges = np.flatnonzero(np.diff(inside.astype(int), prepend=0, append=0))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [slice(a, b) for a, b in pairs if b - a >= least]


def panels_of(path: Path) -> list[list[np.ndarray]]:
    """Read the panels of a picture row by row, RGB; none of them may be white at an edge."""
    picture = cv2.imread(str(path))[..., ::-1]
    ink = (picture < 250).any(-1)
    rows = spans(ink.any(1), 100)
    return [[picture[row, col] for col in spans(ink[row].mean(0) > 0.5, 100)] for row in rows]


SIDE = 96


@pytest.fixture
def example():
    """A gray image, a trimap, a truth, and predictions that are wrong at the lower right."""
    image = np.full((SIDE, SIDE, 3), (90, 120, 60), np.uint8)
    trimap = np.full((SIDE, SIDE), 128, np.uint8)
    truth = np.full((SIDE, SIDE), 200, np.uint8)
    good, bad = truth.copy(), truth.copy()
    good[:8, :8] = 150  # 50 wrong, at 64 pixels
    bad[60:84, 48:72] = 40
    return image, trimap, truth, good, bad


def test_the_zoom_is_where_all_predictions_together_are_worst(example, tmp_path):
    image, trimap, truth, good, bad = example
    out = tmp_path / 'mattes.png'
    draw_mattes(out, [image], [trimap], {'good': [good], 'bad': [bad]}, [truth])
    assert [path.name for path in tmp_path.iterdir()] == ['mattes.png']
    assert cv2.imread(str(out)).shape[1] == round(5 * PANEL * DPI)
    whole, zoom = panels_of(out)
    assert len(whole) == len(zoom) == 5
    # The zoom is of 24 pixels, a quarter of 96, and shows nothing but what is wrong.
    assert LEAST_ZOOM == 24
    shades = [int(np.median(panel)) for panel in zoom]
    assert shades[1:] == [128, 200, 200, 40]
    assert (np.abs(zoom[4][5:-5, 5:-5].astype(int) - 40) < 3).all()
    # The frame is around rows 60 to 83 and columns 48 to 71.
    red = np.abs(whole[0].astype(int) - FRAME).max(-1) < 40
    height = len(red)
    rows, cols = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    scale = height / SIDE
    expected = np.array([60, 84, 48, 72]) * scale
    assert np.abs(np.array([rows[0], rows[-1], cols[0], cols[-1]]) - expected).max() < 2 * scale
    assert red.mean() < 0.1
    for panel in (*whole[1:], *zoom):
        assert not (np.abs(panel.astype(int) - FRAME).max(-1) < 40).any()
    assert (image == (90, 120, 60)).all()  # it is drawn on a copy


def test_without_a_truth_the_zoom_is_where_alpha_is_in_between(example, tmp_path):
    image, trimap, *_ = example
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:40] = 240
    alpha[10:34, 70:94] = 120
    out = tmp_path / 'mattes.png'
    draw_mattes(out, [image] * 2, [trimap] * 2, {'prediction': [alpha] * 2})
    panels = panels_of(out)
    assert [len(row) for row in panels] == [3] * 4
    assert int(np.median(panels[1][2])) == int(np.median(panels[3][2])) == 120
    assert (np.abs(panels[1][2][5:-5, 5:-5].astype(int) - 120) < 3).all()


def test_the_frame_is_drawn_in_large_images(example, tmp_path):
    """A line of a pixel would be lost when the figure is smaller than the image."""
    image, trimap, truth, _, bad = (np.repeat(np.repeat(m, 12, 0), 12, 1) for m in example)
    out = tmp_path / 'mattes.png'
    draw_mattes(out, [image], [trimap], {'bad': [bad]}, [truth])
    red = np.abs(panels_of(out)[0][0].astype(int) - FRAME).max(-1) < 60
    assert len(spans(red.any(0), 1)) >= 1 and red.any(1).sum() > 60


def test_bad_input(example, tmp_path):
    image, trimap, truth, good, _ = example
    out = tmp_path / 'mattes.png'

    def refused(words: str, *arguments: object) -> None:
        with pytest.raises(ValueError, match=re.escape(words)):
            draw_mattes(out, *arguments)

    refused('trimap: expected a map of the size of each image, [], got []', [], [], {})
    refused('trimap: expected', [image], [trimap[1:]], {'a': [good]})
    refused('truth: expected', [image], [trimap], {'a': [good]}, [truth, truth])
    refused('a: expected', [image], [trimap], {'a': [good[:, 1:]]})
    for title in ('image', 'trimap', 'truth'):
        refused(f'got {title!r}', [image], [trimap], {title: [good]}, [truth])
    assert not out.exists()
