"""Foregrounds are changed as their equations say, together with their alphas."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from skimage.color import rgb2hsv

from sapa_mm.matting import AddForeground, JitterForeground, RandomAffineForeground, ResizeSquare
from sapa_mm.matting.foregrounds import add_foreground, affine_matrix, shift_hsv


def seed(value):
    np.random.seed(value)  # noqa: NPY002  the transforms draw from it


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def foreground(height=13, width=18, seed=0):
    return dict(fg=noise(height, width, 3, seed=seed), alpha=noise(height, width, seed=seed + 100))


def coded(height, width):
    """Every pixel has a colour of its own, its row and column, and alpha of its row."""
    rows, columns = np.mgrid[1 : height + 1, 1 : width + 1].astype(np.uint8)
    return dict(fg=np.stack([rows, columns, rows * 0], -1), alpha=rows.copy())


def apply(transform, results, value=0):
    seed(value)
    return transform({key: entry.copy() for key, entry in results.items()})


# A second foreground


def exact_sum(f1, a1, f2, a2):
    """The equation in exact fractions, for one pixel of one channel."""
    x1, x2 = Fraction(int(a1), 255), Fraction(int(a2), 255)
    alpha = 1 - (1 - x1) * (1 - x2)
    color = (f1 * x1 + f2 * (1 - x1) * x2) / alpha if alpha else Fraction(f1)
    return color, 255 * alpha


@pytest.mark.parametrize(
    'f1, a1, f2, a2, color, alpha',
    [
        (200, 255, 10, 255, 200, 255),  # the first one hides the second
        (200, 0, 10, 255, 10, 255),
        (200, 0, 10, 0, 200, 0),  # nothing is there
        (200, 0, 10, 51, 10, 51),
        (200, 51, 10, 0, 200, 51),
        # Alpha is 1 - 4/5 * 2/5 = 17/25, of which the first has 5/17: 200 * 5/17 + 17 * 12/17.
        (200, 51, 17, 153, 71, 173),
    ],
)
def test_a_pixel_of_two_foregrounds(f1, a1, f2, a2, color, alpha):
    images = [np.full((1, 1, 3), f, np.uint8) for f in (f1, f2)]
    alphas = [np.full((1, 1), a, np.uint8) for a in (a1, a2)]
    got, got_alpha = add_foreground(images[0], alphas[0], images[1], alphas[1])
    assert got.tolist() == [[[color] * 3]] and got_alpha.tolist() == [[alpha]]


def test_two_foregrounds_as_exact_fractions_have_them():
    one, two = foreground(), foreground(seed=1)
    one['alpha'][0], two['alpha'][:, 0] = 0, 0
    fg, alpha = add_foreground(one['fg'], one['alpha'], two['fg'], two['alpha'])
    assert fg.dtype == alpha.dtype == np.uint8
    for y, x, channel in np.ndindex(fg.shape):
        color, expected = exact_sum(
            int(one['fg'][y, x, channel]),
            one['alpha'][y, x],
            int(two['fg'][y, x, channel]),
            two['alpha'][y, x],
        )
        assert abs(fg[y, x, channel] - color) <= Fraction(501, 1000)
        assert abs(alpha[y, x] - expected) <= Fraction(501, 1000)


@pytest.fixture
def second(tmp_path):
    results = coded(6, 4)
    paths = dict(fg_path=str(tmp_path / 'fg.png'), alpha_path=str(tmp_path / 'alpha.png'))
    cv2.imwrite(paths['fg_path'], results['fg'])
    cv2.imwrite(paths['alpha_path'], results['alpha'])
    return paths


def test_the_second_foreground_gets_the_size_of_the_first(second):
    results = dict(fg=np.zeros((3, 12, 3), np.uint8), alpha=np.zeros((3, 12), np.uint8))
    got = AddForeground(prob=1)(results | dict(second=second))
    # The middle of each row lies between two of the second's; columns are three times as many.
    rows = got['alpha'][:, 0].tolist()
    assert rows in ([1, 3, 5], [2, 4, 6])
    np.testing.assert_array_equal(got['alpha'], np.repeat(got['alpha'][:, :1], 12, 1))
    np.testing.assert_array_equal(got['fg'][..., 0], got['alpha'])
    np.testing.assert_array_equal(got['fg'][..., 1], np.tile(np.repeat([1, 2, 3, 4], 3), (3, 1)))


def test_the_first_stays_alone_where_both_hide_everything(second, tmp_path):
    results = foreground(6, 4) | dict(alpha=np.full((6, 4), 255, np.uint8))
    results['alpha'][:, 0] = 200
    cv2.imwrite(second['alpha_path'], np.full((6, 4), 255, np.uint8))
    got = AddForeground(prob=1)(dict(results, second=second))
    np.testing.assert_array_equal(got['fg'], results['fg'])
    np.testing.assert_array_equal(got['alpha'], results['alpha'])


def test_a_second_foreground_is_read_only_if_it_is_wanted():
    nowhere = dict(fg_path='nowhere/fg.png', alpha_path='nowhere/alpha.png')
    results = foreground() | dict(second=nowhere)
    assert AddForeground(prob=0)(dict(results))['fg'] is results['fg']
    with pytest.raises(FileNotFoundError, match=r'nowhere/fg\.png'):
        AddForeground(prob=1)(dict(results))


def test_a_second_foreground_that_does_not_fit_its_alpha_is_named(second):
    cv2.imwrite(second['alpha_path'], np.zeros((4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"6 x 4 of fg '.*fg\.png', 4 x 6 of alpha '.*alpha\.png'"):
        AddForeground(prob=1)(foreground() | dict(second=second))


def test_probabilities_hold(second):
    add, resize = AddForeground(), ResizeSquare(size=7)
    seed(0)
    rounds = 400
    added = resized = 0
    for _ in range(rounds):
        results = foreground(6, 4) | dict(second=second)
        given = results['alpha']
        results = add(results)
        added += results['alpha'] is not given
        resized += resize(results)['alpha'].shape == (7, 7)
    assert abs(added - 0.5 * rounds) < 50
    assert abs(resized - 0.25 * rounds) < 45


# Geometry


def test_a_square_of_nearest_pixels():
    results = coded(4, 6)
    got = apply(ResizeSquare(prob=1, size=12), results)
    expected = results['fg'].repeat(3, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(got['fg'], expected)
    np.testing.assert_array_equal(got['alpha'], expected[..., 0])
    got = apply(ResizeSquare(prob=1, size=5), coded(11, 3))
    assert got['fg'].shape == (5, 5, 3)
    np.testing.assert_array_equal(got['fg'][..., 0], got['alpha'])
    assert set(np.unique(got['alpha'])) <= set(range(1, 12))
    kept = apply(ResizeSquare(prob=0), results)
    np.testing.assert_array_equal(kept['fg'], results['fg'])


def warp(results, matrix):
    height, width = results['alpha'].shape
    flags = cv2.INTER_NEAREST
    return cv2.warpAffine(results['fg'], matrix, (width, height), flags=flags)


@pytest.mark.parametrize('size', [(8, 8), (9, 9)])
def test_a_quarter_turn_is_clockwise_about_the_centre(size):
    results = coded(*size)
    got = warp(results, affine_matrix(size, angle=90))
    np.testing.assert_array_equal(got, np.rot90(results['fg'], -1))


@pytest.mark.parametrize('size', [(8, 11), (7, 10)])
@pytest.mark.parametrize('flips', [(False, False), (True, False), (False, True), (True, True)])
def test_flips_are_exact(size, flips):
    results = coded(*size)
    expected = results['fg'][:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    np.testing.assert_array_equal(warp(results, affine_matrix(size, flips=flips)), expected)


def test_a_matrix_keeps_the_centre_and_has_its_factors():
    matrix = affine_matrix((21, 31), angle=30, scale=(0.8, 1.25), shear=10, flips=(True, False))
    np.testing.assert_allclose(matrix @ [15, 10, 1], [15, 10])
    # x is turned alone; y is inclined first, then turned.
    cos, sin, tan = np.cos(np.pi / 6), 0.5, np.tan(np.pi / 18)
    np.testing.assert_allclose(matrix[:, 0], [-0.8 * cos, -0.8 * sin])
    np.testing.assert_allclose(matrix[:, 1], [1.25 * (cos * tan - sin), 1.25 * (sin * tan + cos)])


def test_half_the_size_leaves_nothing_outside():
    results = coded(8, 16)
    transform = RandomAffineForeground(rotation=0, scale=(0.5, 0.5), shear=0, flip=0)
    got = apply(transform, results)
    inside = np.zeros((8, 16), bool)
    inside[2:6, 4:12] = True
    assert (got['alpha'] > 0).tolist() == inside.tolist()
    assert not got['fg'][~inside].any()
    np.testing.assert_array_equal(got['fg'][..., 0], got['alpha'])


@pytest.mark.parametrize('size', [(13, 18), (40, 9), (1, 5)])
def test_a_foreground_and_its_alpha_move_together(size):
    results = coded(*size)
    transform = TRANSFORMS.build(dict(type='RandomAffineForeground'))
    seen = set()
    for value in range(20):
        got = apply(transform, results, value)
        assert got['alpha'].shape == size and got['fg'].shape == (*size, 3)
        assert got['alpha'].dtype == got['fg'].dtype == np.uint8
        np.testing.assert_array_equal(got['fg'][..., 0], got['alpha'])
        seen.add(got['fg'].tobytes())
        np.testing.assert_array_equal(apply(transform, results, value)['fg'], got['fg'])
    assert len(seen) > 1


def test_an_affine_change_makes_no_new_values():
    alpha = np.random.default_rng(0).choice([0, 255], (30, 40)).astype(np.uint8)
    results = dict(fg=noise(30, 40, 3), alpha=alpha)
    for value in range(5):
        got = apply(RandomAffineForeground(), results, value)['alpha']
        assert set(np.unique(got)) == {0, 255}


def test_the_factors_of_the_two_sides_are_drawn_one_by_one():
    results = dict(fg=noise(100, 100, 3), alpha=np.full((100, 100), 255, np.uint8))
    transform = RandomAffineForeground(rotation=0, scale=(0.5, 0.9), shear=0, flip=0)
    sides = []
    for value in range(60):
        alpha = apply(transform, results, value)['alpha']
        sides.append([np.count_nonzero(alpha.any(axis)) for axis in (0, 1)])
    sides = np.array(sides)
    # Rounding moves a side by a pixel.
    assert (sides.min(0) >= 49).all() and (sides.max(0) <= 91).all()
    assert (sides.min(0) < 55).all() and (sides.max(0) > 85).all()
    assert abs(np.corrcoef(sides.T)[0, 1]) < 0.4


def test_no_affine_change_is_none():
    results = foreground()
    got = apply(RandomAffineForeground(rotation=0, scale=(1, 1), shear=0, flip=0), results)
    for key in ('fg', 'alpha'):
        np.testing.assert_array_equal(got[key], results[key])


def test_flips_are_drawn_one_by_one():
    results = coded(5, 7)
    transform = RandomAffineForeground(rotation=0, scale=(1, 1), shear=0, flip=0.5)
    got = {tuple(apply(transform, results, value)['fg'][0, 0]) for value in range(40)}
    assert got == {(1, 1, 0), (1, 7, 0), (5, 1, 0), (5, 7, 0)}


# Colours


def test_hue_saturation_and_value_of_known_colours():
    red, green, pink, grey = [0, 0, 255], [0, 255, 0], [100, 100, 200], [90, 90, 90]
    image = np.array([[red, green, pink, grey]], np.uint8)
    np.testing.assert_array_equal(shift_hsv(image, 0, 1, 1), image)
    blue = [255, 0, 0]
    expected = [[green, blue, [100, 200, 100], grey]]
    for hue in (120, -240, 480):
        np.testing.assert_array_equal(shift_hsv(image, hue, 1, 1), expected)
    # Half the saturation is halfway to the largest channel, one and a half ends at 1.
    expected = [[[128, 128, 255], [128, 255, 128], [150, 150, 200], grey]]
    np.testing.assert_allclose(shift_hsv(image, 0, 0.5, 1), expected, atol=1)
    expected = [[red, green, [50, 50, 200], grey]]
    np.testing.assert_allclose(shift_hsv(image, 0, 1.5, 1), expected, atol=1)
    expected = [[[0, 0, 128], [0, 128, 0], [50, 50, 100], [45, 45, 45]]]
    np.testing.assert_allclose(shift_hsv(image, 0, 1, 0.5), expected, atol=1)
    # Twice 200 ends at 255, whose saturation stays 1/2.
    expected = [[red, green, [128, 128, 255], [180, 180, 180]]]
    np.testing.assert_allclose(shift_hsv(image, 0, 1, 2), expected, atol=1)


def test_nothing_changes_without_jitter():
    results = foreground(33, 47)
    got = apply(JitterForeground(hue=0, saturation=0, value=0), results)
    assert got['fg'].dtype == np.uint8
    np.testing.assert_array_equal(got['fg'], results['fg'])
    view = np.repeat(results['fg'], 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(shift_hsv(view, 9, 1.1, 0.9), shift_hsv(view.copy(), 9, 1.1, 0.9))


def test_jitter_keeps_within_its_ranges():
    image = np.tile(np.array([60, 90, 130], np.uint8), (3, 5, 1))
    before = rgb2hsv(image[..., ::-1])[0, 0]
    transform = TRANSFORMS.build(dict(type='JitterForeground'))
    found = []
    for value in range(100):
        got = apply(transform, dict(fg=image), value)['fg']
        assert (got == got[0, 0]).all()
        found.append(rgb2hsv(got[..., ::-1])[0, 0])
        np.testing.assert_array_equal(apply(transform, dict(fg=image), value)['fg'], got)
    found = np.array(found)
    hue = (360 * (found[:, 0] - before[0]) + 180) % 360 - 180
    factors = found[:, 1:] / before[1:]
    # Rounding to 8 bits moves them by a little.
    assert 15 < hue.max() < 21 and -21 < hue.min() < -15
    assert (factors.max(0) > 1.15).all() and (factors.max(0) < 1.23).all()
    assert (factors.min(0) < 0.85).all() and (factors.min(0) > 0.77).all()


# Arguments


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(type='AddForeground', prob=1.5), 'prob.*1.5'),
        (dict(type='ResizeSquare', prob=-0.1), 'prob.*-0.1'),
        (dict(type='ResizeSquare', size=0), 'size.*0'),
        (dict(type='RandomAffineForeground', rotation=-1), 'rotation.*-1'),
        (dict(type='RandomAffineForeground', scale=(1.2, 0.8)), 'scale.*1.2'),
        (dict(type='RandomAffineForeground', scale=(0, 1)), 'scale.*0'),
        (dict(type='RandomAffineForeground', shear=90), 'shear.*90'),
        (dict(type='RandomAffineForeground', flip=2), 'flip.*2'),
        (dict(type='JitterForeground', hue=181), 'hue.*181'),
        (dict(type='JitterForeground', saturation=1), 'saturation.*1'),
        (dict(type='JitterForeground', value=-0.5), 'value.*-0.5'),
    ],
)
def test_bad_arguments_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)


def test_the_defaults_are_those_of_the_paper():
    built = [AddForeground(), ResizeSquare(), RandomAffineForeground()]
    assert [repr(transform) for transform in built] == [
        'AddForeground(prob=0.5)',
        'ResizeSquare(prob=0.25, size=640)',
        'RandomAffineForeground(rotation=30, scale=(0.8, 1.25), shear=10, flip=0.5)',
    ]
