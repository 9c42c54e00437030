"""Colours of foregrounds, against a plain rewriting in float64 and against what was mixed."""

import numpy as np
import pytest
from upsampler_oracles import refused

from sapa_mm.matting import compose, cover, estimate_foreground


def box_mean(values: np.ndarray, side: int) -> np.ndarray:
    """The mean over boxes of reflected maps (H, W), pixel by pixel."""
    before = side // 2
    padded = np.pad(values, (before, side - 1 - before), mode='reflect')
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    return windows.mean((2, 3))


def plain(image: np.ndarray, alpha: np.ndarray, radii: tuple[int, ...]) -> np.ndarray:
    a = alpha.astype(np.float64) / 255
    out = image.copy()
    for channel in range(3):
        mixed = image[..., channel].astype(np.float64) / 255
        fg, bg = mixed, mixed
        for radius in radii:
            weight, rest = box_mean(a, radius), box_mean(1 - a, radius)
            with np.errstate(invalid='ignore', divide='ignore'):
                f = np.where(weight > 1e-12, box_mean(fg * a, radius) / weight, fg)
                b = np.where(rest > 1e-12, box_mean(bg * (1 - a), radius) / rest, bg)
            fg, bg = np.clip(f + a * (mixed - a * f - (1 - a) * b), 0, 1), b
        out[..., channel] = np.where(alpha == 255, image[..., channel], np.rint(255 * fg))
    return out


@pytest.mark.parametrize('radii', [(9, 4), (1,), (5,), (30, 6, 2)], ids=str)
@pytest.mark.parametrize('size', [(17, 23), (40, 8)], ids=str)
def test_against_float64(size, radii):
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    alpha = rng.choice(np.uint8([0, 1, 60, 128, 254, 255]), size)
    alpha[: size[0] // 2, :6] = 0
    alpha[size[0] // 2 :, :6] = 255
    before = image.copy(), alpha.copy()
    got = estimate_foreground(image[..., ::-1], alpha, radii)[..., ::-1]
    difference = np.abs(got.astype(int) - plain(image, alpha, radii))
    assert difference.max() <= 1
    assert difference.mean() < 0.01
    assert np.array_equal(image, before[0]) and np.array_equal(alpha, before[1])


def test_by_hand():
    """Of a box of 3 in a row of 3, reflected: 0 and 51 are whole, the middle is mixed."""
    image = np.full((1, 3, 3), 102, np.uint8)
    image[0, 0], image[0, 2] = 255, 0
    alpha = np.uint8([[255, 51, 0]])
    # In the middle a = .2: F^ = (1 + .2 * .4) / 1.2 = .9, B^ = (.8 * .4) / 1.8 = .1778, and
    # F = .9 + .2 (.4 - .18 - .1422) = .91556.
    # On the right the box has the middle twice: F^ = .4 = F.
    got = estimate_foreground(image, alpha, (3,))
    assert got[0, :, 0].tolist() == [255, 233, 102]
    assert (got == got[..., :1]).all()


def test_recovers_what_was_mixed():
    rows, cols = np.mgrid[:240, :320]
    fg = np.stack([200 + 20 * np.sin(rows / 30), 60 + 20 * np.cos(cols / 40), 0 * rows + 40], -1)
    bg = np.stack([30 + 0 * rows, 170 + 20 * np.sin(cols / 25), 220 + 0 * rows], -1)
    # This is a disk whose edge is 12 pixels wide.
    alpha = np.clip(127 + 255 / 12 * (80 - np.hypot(rows - 120, cols - 160)), 0, 255)
    alpha = alpha.astype(np.uint8)
    a = alpha[..., None] / 255
    image = np.rint(a * fg + (1 - a) * bg).astype(np.uint8)
    got = estimate_foreground(image, alpha)
    mixed = (alpha > 0) & (alpha < 255)
    errors = [np.abs(colours[mixed] - fg[mixed]).mean() for colours in (image, got)]
    assert errors[0] > 50
    assert errors[1] < 0.12 * errors[0]
    assert np.array_equal(got[alpha == 255], image[alpha == 255])
    # Composed anew on the same background it looks as it did.
    again = a * got + (1 - a) * bg
    assert np.abs(again - image)[mixed].mean() < 4


@pytest.mark.parametrize('value', [0, 255])
def test_nothing_is_mixed(value):
    """There is neither a foreground nor a background to take the mean of."""
    image = np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype=np.uint8)
    assert np.array_equal(estimate_foreground(image, np.full((9, 7), value, np.uint8)), image)


def test_one_pixel():
    image, alpha = np.full((1, 1, 3), 90, np.uint8), np.full((1, 1), 100, np.uint8)
    assert estimate_foreground(image, alpha).tolist() == [[[90, 90, 90]]]


def test_bad_input():
    image, alpha = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)
    with refused('image', 'float64', error=ValueError):
        estimate_foreground(image / 2, alpha)
    with refused('image', 'got', '4, 5', error=ValueError):
        estimate_foreground(alpha, alpha)
    with refused('alpha', 'float64', error=ValueError):
        estimate_foreground(image, alpha / 2)
    with refused('one size', '4 x 5', '5 x 4', error=ValueError):
        estimate_foreground(image, alpha.T)
    for radii in ((), (3, 0)):
        with refused('radii', 'positive', error=ValueError):
            estimate_foreground(image, alpha, radii)


def test_compose_by_hand():
    fg = np.uint8([[[10, 20, 30], [10, 20, 30], [200, 0, 255]]])
    alpha = np.uint8([[0, 255, 51]])
    got = compose(fg, alpha, np.uint8([[[100, 110, 120]]]))
    # .2 of the last and .8 of the background.
    assert got.tolist() == [[[100, 110, 120], [10, 20, 30], [120, 88, 147]]]
    # No sum may wrap around.
    assert compose(fg + 0, alpha, np.uint8([[[255, 255, 255]]])).min() == 10


@pytest.mark.parametrize('size', [(6, 8), (5, 3), (1, 1), (7, 40)], ids=str)
@pytest.mark.parametrize('own', [(6, 8), (12, 16), (3, 9), (9, 2)], ids=str)
def test_cover_has_the_size(own, size):
    got = cover(np.full((*own, 3), (1, 2, 3), np.uint8), size)
    assert got.shape == (*size, 3)
    assert (got == np.uint8([1, 2, 3])).all()


def test_cover_crops_around_the_centre():
    background = np.zeros((2, 8, 3), np.uint8)
    background[..., 0] = 30 * np.arange(8)
    assert np.array_equal(cover(background, (2, 4)), background[:, 2:6])
    assert np.array_equal(cover(background.transpose(1, 0, 2), (4, 2))[:, 0], background[0, 2:6])
    # Half as large: a pixel is the mean of four.
    assert cover(background, (1, 2))[0, :, 0].tolist() == [75, 135]
