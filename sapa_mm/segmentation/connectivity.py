"""Makes superpixels of connected regions."""

import math

import numpy as np

from ..frameworks import require


def connect_superpixels(superpixel_map: np.ndarray, min_size: float) -> np.ndarray:
    """Make every superpixel one connected region, and merge those that are too small.

    Every 4-connected region of one number becomes a superpixel of its own. Those below ``min_size``
    pixels are merged into the neighbour with which they have the longest common border, of equal
    ones that which comes first; all at once, and again until none is too small.

    Args:
        superpixel_map: Superpixels (H, W), integers.
        min_size: In pixels. Up to 1 nothing is merged.

    Returns:
        Superpixels (H, W), int64, numbered from 0 in the order of their first pixels, row by row. A
        map of less than ``min_size`` pixels is a single one.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: ``superpixel_map`` holds no integers, or ``min_size`` is no number.
        ValueError: ``superpixel_map`` is not (H, W) or is empty, or ``min_size`` is negative, NaN
            or infinite.
    """
    superpixel_map = np.asarray(superpixel_map)
    if superpixel_map.ndim != 2 or 0 in superpixel_map.shape:
        raise ValueError(
            f'superpixel_map: expected a non-empty map (H, W), got shape {superpixel_map.shape}'
        )
    if not np.issubdtype(superpixel_map.dtype, np.integer):
        raise TypeError(f'superpixel_map: expected integers, got {superpixel_map.dtype}')
    numbers = (int, float, np.integer, np.floating)
    if isinstance(min_size, bool) or not isinstance(min_size, numbers):
        raise TypeError(f'min_size: expected a number of at least 0, got {min_size!r}')
    if not 0 <= min_size < math.inf:
        raise ValueError(f'min_size: expected a number of at least 0, got {min_size}')
    with require('scikit-image', 'connect_superpixels', 'scikit-image'):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
        from skimage.measure import label

    # Numbers from 1 keep scikit-image from taking one of them for the background.
    _, places = np.unique(superpixel_map, return_inverse=True)
    regions = label(places.reshape(superpixel_map.shape) + 1, connectivity=1) - 1
    sizes = np.bincount(regions.ravel())
    # It is the region of the result for each of these regions.
    merged = np.arange(len(sizes))
    sides = [(regions[1:], regions[:-1]), (regions[:, 1:], regions[:, :-1])]
    one, other = (np.concatenate([pair[k].ravel() for pair in sides]) for k in (0, 1))
    first, second = np.concatenate([one, other]), np.concatenate([other, one])
    while True:
        count = len(sizes)
        # A region without neighbours has no pair: it is the whole map.
        small = (first != second) & (sizes[first] < min_size)
        if not small.any():
            return merged[regions].astype(np.int64)
        pairs, borders = np.unique(first[small] * count + second[small], return_counts=True)
        sources, targets = pairs // count, pairs % count
        order = np.lexsort((targets, -borders, sources))
        starts = np.unique(sources[order], return_index=True)[1]
        chosen = order[starts]
        graph = coo_array(
            (np.ones(len(chosen), bool), (sources[chosen], targets[chosen])), shape=(count, count)
        )
        # Components are numbered in the order of their first regions, and regions of their pixels.
        _, component = connected_components(graph, directed=False)
        first, second = component[first].astype(np.int64), component[second].astype(np.int64)
        apart = first != second
        first, second = first[apart], second[apart]
        merged = component[merged]
        sizes = np.bincount(component, weights=sizes)
