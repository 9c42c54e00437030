"""Transforms of images with depth maps that mmseg does not have.

Those of mmseg that suit them are ``RandomFlip``, ``RandomCrop``, ``Resize`` and, with
``seg_pad_val=0``, ``RandomRotate``, which takes the nearest depth and leaves unknown what it turns
in from outside.
"""

import random
from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmseg.datasets.transforms import LoadDepthAnnotation
from mmseg.registry import TRANSFORMS

from ..ops.checks import check_choice, check_int


@TRANSFORMS.register_module()
class LoadDepthMap(LoadDepthAnnotation):
    """Load a depth map as metres, 0 where depth is unknown.

    Files are images of 16 bits, which hold whole numbers, or what ``decode_backend`` reads. The map
    has to have the size of the image's file, whether a ``Resize`` stands before or behind.

    Args:
        depth_rescale_factor: Metres of a file's unit. Default: that of millimetres.
        unknown: What is done about depth that is NaN, infinite or negative: ``'error'`` raises a
            ValueError, ``'zero'`` makes it unknown. Default: ``'error'``.
        **kwargs: ``LoadDepthAnnotation``'s other arguments.

    Raises:
        ValueError: Bad arguments, a map of another size than the image, or depth that is none.
    """

    def __init__(
        self, depth_rescale_factor: float = 1e-3, unknown: str = 'error', **kwargs: object
    ):
        check_choice('unknown', unknown, ('error', 'zero'))
        # The parent multiplies in place, which integers refuse.
        super().__init__(
            depth_rescale_factor=depth_rescale_factor, **{**kwargs, 'to_float32': True}
        )
        self.unknown = unknown

    def transform(self, results: dict) -> dict:
        """Add ``gt_depth_map``, float32 (H, W), unless there is no ``depth_map_path``.

        The inferencer of mmseg, which has images alone, runs all transforms but those it knows.
        """
        if 'depth_map_path' not in results:
            return results
        path = results['depth_map_path']
        try:
            results = super().transform(results)
        except (AttributeError, ValueError, cv2.error) as error:
            raise ValueError(f"depth_map_path: expected a depth map, got '{path}'") from error
        depth = results['gt_depth_map']
        size = tuple(results.get('ori_shape') or results['img'].shape)[:2]
        if depth.shape != size:
            raise ValueError(
                f'depth_map_path: expected a map of {size[0]} x {size[1]} pixels, as the image '
                f"'{results.get('img_path')}' has, got {' x '.join(map(str, depth.shape))} in "
                f"'{path}'"
            )
        bad = ~np.isfinite(depth) | (depth < 0)
        if bad.any():
            if self.unknown == 'error':
                raise ValueError(
                    f'depth_map_path: expected depth of at least 0, got {bad.sum():,} pixels that '
                    f"are NaN, infinite or negative in '{path}'; unknown='zero' makes them unknown"
                )
            depth[bad] = 0
        return results


@TRANSFORMS.register_module()
class CropRegion(BaseTransform):
    """Crop image and depth map to fixed rows and columns, as NYU's frames are cropped.

    Args:
        rows: First row, and the one after the last.
        columns: First column, and the one after the last.

    Raises:
        TypeError: Bounds that are no ints.
        ValueError: No pair of bounds, an empty region, an image that ends before the region, or a
            depth map that is loaded behind this.
    """

    def __init__(self, rows: Sequence[int], columns: Sequence[int]):
        for name, bounds in (('rows', rows), ('columns', columns)):
            if len(bounds) != 2:
                raise ValueError(f'{name}: expected a first and an end, got {bounds!r}')
            check_int(f'{name}[0]', bounds[0], low=0)
            check_int(f'{name}[1]', bounds[1], low=bounds[0] + 1)
        self.rows, self.columns = tuple(rows), tuple(columns)

    def transform(self, results: dict) -> dict:
        """Crop ``img`` and all maps."""
        if 'depth_map_path' in results and 'gt_depth_map' not in results:
            raise ValueError(
                'CropRegion: expected LoadDepthMap before it, got a depth map that is not loaded '
                f"yet, '{results['depth_map_path']}'"
            )
        height, width = results['img'].shape[:2]
        if self.rows[1] > height or self.columns[1] > width:
            raise ValueError(
                f'rows, columns: expected a region within the image, got {self.rows} and '
                f"{self.columns} for {height} x {width} pixels of '{results.get('img_path')}'"
            )
        region = slice(*self.rows), slice(*self.columns)
        for key in ('img', *results.get('seg_fields', [])):
            results[key] = np.ascontiguousarray(results[key][region])
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(rows={self.rows}, columns={self.columns})'


@TRANSFORMS.register_module()
class BTSColorAugmentation(BaseTransform):
    """Change the colours as BTS's training does (Lee et al., 2019).

    With x in [0, 1], it becomes min(1, c b x ** g): a gamma g, a brightness b and, for every
    channel, a factor c, all of them uniform.

    Args:
        prob: Probability that an image is changed.
        gamma: Bounds of g.
        brightness: Bounds of b.
        channel: Bounds of c.

    Raises:
        ValueError: A probability outside of [0, 1], or bounds that are not two positive numbers in
            order.
    """

    def __init__(
        self,
        prob: float = 0.5,
        gamma: Sequence[float] = (0.9, 1.1),
        brightness: Sequence[float] = (0.75, 1.25),
        channel: Sequence[float] = (0.9, 1.1),
    ):
        if not 0 <= prob <= 1:
            raise ValueError(f'prob: expected 0 to 1, got {prob!r}')
        for name, bounds in (('gamma', gamma), ('brightness', brightness), ('channel', channel)):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f'{name}: expected two positive numbers in order, got {bounds!r}')
        self.prob = prob
        self.gamma, self.brightness, self.channel = tuple(gamma), tuple(brightness), tuple(channel)

    @cache_randomness
    def draw(self, channels: int) -> tuple[bool, float, np.ndarray]:
        """Draw whether to change an image, its gamma, and the factor of every channel."""
        change = random.random() < self.prob
        gamma, brightness = random.uniform(*self.gamma), random.uniform(*self.brightness)
        factors = [brightness * random.uniform(*self.channel) for _ in range(channels)]
        return change, gamma, np.array(factors, np.float32)

    def transform(self, results: dict) -> dict:
        """Change ``img``, (H, W, C) of 0 to 255, whose dtype it keeps."""
        image = results['img']
        change, gamma, factors = self.draw(image.shape[2])
        if change:
            scaled = (image.astype(np.float32) / 255) ** gamma * factors
            changed = 255 * np.clip(scaled, 0, 1)
            if np.issubdtype(image.dtype, np.integer):
                changed = changed.round()
            results['img'] = changed.astype(image.dtype)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(prob={self.prob}, gamma={self.gamma}, '
            f'brightness={self.brightness}, channel={self.channel})'
        )
