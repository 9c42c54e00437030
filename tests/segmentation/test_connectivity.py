"""Connected superpixels: hand-made maps, and loops over any others."""

import numpy as np
import pytest
from scipy import ndimage

from sapa_mm.segmentation import connect_superpixels


def parse(text):
    """A map from rows of digits."""
    return np.array([[int(digit) for digit in row] for row in text.split()])


@pytest.mark.parametrize(
    ('given', 'min_size', 'expected'),
    [
        # Parts of one number that lie apart, or touch at a corner alone, get their own numbers.
        ('0100 0100', 0, '0122 0122'),
        ('05 50', 0, '01 23'),
        # Numbers follow the first pixels, row by row, whatever they were.
        ('79 27', 0, '01 23'),
        ('9988 9988', 4, '0011 0011'),
        # A size of exactly min_size stays.
        ('0001 0001', 2, '0001 0001'),
        ('0001 0001', 2.5, '0000 0000'),
        ('001 002', 1, '001 002'),
        # The longest border counts, and neither the order nor the neighbours' sizes.
        ('0011 0021 0011', 2, '0011 0011 0011'),
        ('00000 00111 00121 00000', 2, '00000 00111 00111 00000'),
        # Of equal borders the region that comes first counts.
        ('00200 11111', 2, '00011 22222'),
        # All of them merge at once, whatever becomes of the neighbour.
        ('0012333', 2, '0000111'),
        # Two that merge are large enough together, or have to go on.
        ('012222', 2, '001111'),
        ('012222', 3, '000000'),
        # There may be nothing large enough.
        ('3333 3333', 9, '0000 0000'),
        ('0123 4567', 99, '0000 0000'),
        ('4', 5, '0'),
    ],
)
def test_hand_made_maps(given, min_size, expected):
    got = connect_superpixels(parse(given), min_size)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, parse(expected))


def in_order(numbers):
    """Number a map from 0 in the order of the first pixels."""
    found = {}
    return np.array([[found.setdefault(n, len(found)) for n in row] for row in numbers.tolist()])


def regions_of(numbers):
    """The 4-connected regions of a map, numbered in the order of their first pixels."""
    found, count = np.zeros(numbers.shape, int), 0
    for number in np.unique(numbers):
        parts, n = ndimage.label(numbers == number)
        found[parts > 0] = parts[parts > 0] + count
        count += n
    return in_order(found)


def connect_by_loops(numbers, min_size):
    """The promise of `connect_superpixels`, pixel by pixel."""
    regions = regions_of(numbers)
    height, width = regions.shape
    while True:
        goes_to = {}
        for region in range(regions.max() + 1):
            if (regions == region).sum() >= min_size:
                continue
            borders = {}
            for i, j in np.argwhere(regions == region):
                for y, x in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    if 0 <= y < height and 0 <= x < width and regions[y, x] != region:
                        borders[regions[y, x]] = borders.get(regions[y, x], 0) + 1
            if borders:
                goes_to[region] = min(borders, key=lambda n: (-borders[n], n))
        if not goes_to:
            return regions
        group = np.arange(regions.max() + 1)
        for a, b in goes_to.items():
            group[group == group[a]] = group[b]
        regions = in_order(group[regions])


def noisy_map(seed, size=(23, 31)):
    generator = np.random.default_rng(seed)
    blocks = np.kron(generator.integers(0, 9, (4, 5)), np.ones((6, 7), int))[: size[0], : size[1]]
    return np.where(generator.random(size) < 0.2, generator.integers(0, 9, size), blocks)


@pytest.mark.parametrize('min_size', [0, 2, 5.5, 30, 200])
@pytest.mark.parametrize('seed', range(3))
def test_by_loops(seed, min_size):
    given = noisy_map(seed)
    before = given.copy()
    got = connect_superpixels(given, min_size)
    np.testing.assert_array_equal(got, connect_by_loops(given, min_size))
    np.testing.assert_array_equal(given, before)
    # Each is connected, large enough, and no two that were large enough became one.
    np.testing.assert_array_equal(got, regions_of(got))
    assert np.bincount(got.ravel()).min() >= min_size
    original = regions_of(given)
    large = np.flatnonzero(np.bincount(original.ravel()) >= min_size)
    owners = [np.unique(got[original == region]).tolist() for region in large]
    assert all(len(owner) == 1 for owner in owners)
    assert len({owner[0] for owner in owners}) == len(large)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16, np.int32, np.int64])
def test_dtypes_and_views(dtype):
    given = noisy_map(0)
    expected = connect_by_loops(given, 4)
    np.testing.assert_array_equal(connect_superpixels(given.astype(dtype), 4), expected)
    view = np.repeat(given.astype(dtype), 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(connect_superpixels(view, np.float32(4)), expected)
    if np.dtype(dtype).kind == 'i':
        negative = given.astype(dtype) - 5
        np.testing.assert_array_equal(connect_superpixels(negative, 4), expected)


@pytest.mark.parametrize(
    ('superpixel_map', 'min_size', 'error', 'message'),
    [
        (np.zeros(4, int), 1, ValueError, r'superpixel_map.*\(H, W\).*\(4,\)'),
        (np.zeros((1, 4, 4), int), 1, ValueError, r'superpixel_map.*\(1, 4, 4\)'),
        (np.zeros((0, 4), int), 1, ValueError, r'superpixel_map.*\(0, 4\)'),
        (np.zeros((4, 4)), 1, TypeError, 'superpixel_map.*float64'),
        (np.zeros((4, 4), bool), 1, TypeError, 'superpixel_map.*bool'),
        (np.zeros((4, 4), int), -1, ValueError, 'min_size.*-1'),
        (np.zeros((4, 4), int), np.nan, ValueError, 'min_size.*nan'),
        (np.zeros((4, 4), int), np.inf, ValueError, 'min_size.*inf'),
        (np.zeros((4, 4), int), True, TypeError, 'min_size.*True'),
        (np.zeros((4, 4), int), '1', TypeError, "min_size.*'1'"),
    ],
)
def test_bad_input(superpixel_map, min_size, error, message):
    with pytest.raises(error, match=message):
        connect_superpixels(superpixel_map, min_size)
