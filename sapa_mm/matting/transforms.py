"""Transforms of image matting, which end in what the network takes.

A2U's training (Dai et al., CVPR 2021) has this order: `LoadComposition`, `AddForeground`,
`ResizeSquare`, `RandomAffineForeground`, `MakeTrimap`, `CropUnknown`, `JitterForeground`,
`Composite` and `PackMatting`. To test there are the first and the last.

They hand on these entries of ``results``: ``fg``, ``bg`` and ``img``, (H, W, 3), BGR, ``alpha`` and
``trimap``, (H, W); all of them are uint8 up to `Composite`. What is random is drawn by NumPy's
global generator, which mmengine seeds in every worker. A transform draws the same number of values
whatever they lead to, so that one's probability does not change what its followers draw.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from ..ops.checks import check_positive_int
from .files import (
    UNKNOWN,
    check_same_size,
    check_unknown,
    read_alpha,
    read_foreground,
    read_image,
    read_trimap,
)


def uniform(low: float, high: float) -> float:
    """Draw a float from ``low`` to ``high``."""
    return float(np.random.uniform(low, high))  # noqa: NPY002  mmengine seeds this one


def integer(low: int, high: int) -> int:
    """Draw an int from ``low`` to ``high``, both of which may come."""
    return int(np.random.randint(low, high + 1))  # noqa: NPY002  mmengine seeds this one


class MattingTransform(ABC):
    """A transform of a dict, as mmengine's data sets run them."""

    @abstractmethod
    def __call__(self, results: dict) -> dict:
        """Change ``results`` and return them."""

    def __repr__(self) -> str:
        arguments = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({arguments})'


@TRANSFORMS.register_module()
class LoadComposition(MattingTransform):
    """Load what an item of `CompositionDataset` names.

    To train, these are ``fg``, ``alpha`` and ``bg``. `AddForeground` loads the second foreground,
    which most items do without. To test, these are ``img`` and ``trimap``, and ``alpha`` where
    there is an ``alpha_path``; all of one size. ``ori_shape`` is (H, W) of the foreground or the
    image.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file does not hold what it should, files differ in size, or a trimap has no
            unknown pixel.
    """

    def __call__(self, results: dict) -> dict:
        """Load the files."""
        if 'fg_path' in results:
            results['fg'], results['alpha'] = read_foreground(
                results['fg_path'], results['alpha_path']
            )
            results['bg'] = read_image(results['bg_path'])
            results['ori_shape'] = results['alpha'].shape
            return results
        loaded = {}
        for key, read in (('img', read_image), ('trimap', read_trimap), ('alpha', read_alpha)):
            if key == 'alpha' and 'alpha_path' not in results:
                continue
            path = results[f'{key}_path']
            results[key] = loaded[f"{key} '{path}'"] = read(path)
        check_same_size(**loaded)
        check_unknown(results['trimap'], results['trimap_path'])
        results['ori_shape'] = results['trimap'].shape
        return results


@TRANSFORMS.register_module()
class MakeTrimap(MattingTransform):
    """Make a ``trimap`` of ``alpha``: what is 255 and what is 0 shrink, and the rest is unknown.

    Each of the two is eroded by an ellipse, OpenCV's, whose diameter is drawn on its own. The
    border of the image does not erode.

    Args:
        diameters: The least and the largest diameter in pixels; 1 erodes nothing.

    Raises:
        TypeError: Diameters that are no ints.
        ValueError: Diameters that are not two positive ones in order.
    """

    def __init__(self, diameters: Sequence[int] = (1, 29)):
        for value in diameters:
            check_positive_int('diameters', value)
        if len(diameters) != 2 or diameters[0] > diameters[1]:
            raise ValueError(f'diameters: expected two in order, got {diameters!r}')
        self.diameters = tuple(diameters)

    def __call__(self, results: dict) -> dict:
        """Add ``trimap``, uint8 of 0, 128 and 255."""
        alpha = results['alpha']
        trimap = np.full_like(alpha, UNKNOWN)
        for value in (255, 0):
            diameter = integer(*self.diameters)
            ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
            known = cv2.erode((alpha == value).astype(np.uint8), ellipse)
            trimap[known == 1] = value
        results['trimap'] = trimap
        return results


@TRANSFORMS.register_module()
class CropUnknown(MattingTransform):
    """Crop ``fg``, ``alpha`` and ``trimap`` around an unknown pixel, and ``bg`` at random.

    The pixel is drawn uniformly; it is the centre, (size // 2, size // 2) of the crop, unless the
    crop would leave the image. Without an unknown pixel any crop is as probable. Before that, an
    image with a side shorter than ``size`` is enlarged, as a whole, until that side has it: the
    foreground with alpha and trimap by nearest pixels, so that these agree, and the background
    bicubically. Nothing is made smaller.

    Args:
        size: Height and width of the crops in pixels.

    Raises:
        TypeError: ``size`` is no int.
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int = 512):
        check_positive_int('size', size)
        self.size = size

    def __call__(self, results: dict) -> dict:
        """Change ``fg``, ``alpha``, ``trimap`` and ``bg``."""
        for key in ('fg', 'alpha', 'trimap'):
            results[key] = self._enlarge(results[key], cv2.INTER_NEAREST_EXACT)
        height, width = results['trimap'].shape
        unknown = np.flatnonzero(results['trimap'] == UNKNOWN)
        place = uniform(0, 1)
        top, left = self._random_corner(height, width)
        if unknown.size:
            row, column = divmod(int(unknown[int(place * unknown.size)]), width)
            top = min(max(row - self.size // 2, 0), height - self.size)
            left = min(max(column - self.size // 2, 0), width - self.size)
        for key in ('fg', 'alpha', 'trimap'):
            results[key] = results[key][top : top + self.size, left : left + self.size]
        background = self._enlarge(results['bg'], cv2.INTER_CUBIC)
        top, left = self._random_corner(*background.shape[:2])
        results['bg'] = background[top : top + self.size, left : left + self.size]
        return results

    def _enlarge(self, image: np.ndarray, interpolation: int) -> np.ndarray:
        """Enlarge an image whose shorter side is less than ``size``."""
        sides = image.shape[:2]
        if min(sides) >= self.size:
            return image
        height, width = (max(self.size, round(n * self.size / min(sides))) for n in sides)
        return cv2.resize(image, (width, height), interpolation=interpolation)

    def _random_corner(self, height: int, width: int) -> tuple[int, int]:
        """Draw the top and left side of a crop."""
        return integer(0, height - self.size), integer(0, width - self.size)


@TRANSFORMS.register_module()
class Composite(MattingTransform):
    """Composite ``img`` = alpha ``fg`` + (1 - alpha) ``bg`` in floating point, without rounding.

    Raises:
        ValueError: ``fg``, ``bg`` and ``alpha`` differ in size.
    """

    def __call__(self, results: dict) -> dict:
        """Add ``img``; make ``alpha`` float32 from 0 to 1, and ``fg`` and ``bg`` float32."""
        check_same_size(**{key: results[key] for key in ('fg', 'bg', 'alpha')})
        fg, bg = (results[key].astype(np.float32) for key in ('fg', 'bg'))
        alpha = results['alpha'].astype(np.float32) / 255
        img = fg - bg
        img *= alpha[..., None]
        img += bg
        results.update(img=img, fg=fg, bg=bg, alpha=alpha)
        return results


def _to_tensor(image: np.ndarray) -> Tensor:
    """Make (H, W, C) or (H, W) a tensor (C, H, W) of the same dtype."""
    channels_first = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels_first))


@TRANSFORMS.register_module()
class PackMatting(MattingTransform):
    """Pack what `GuidedMattingNet` and `MattingMetric` take.

    ``inputs`` is ``img``, (3, H, W), BGR, 0 to 255: uint8, or float32 after `Composite`.
    ``data_samples`` has ``trimap``, ``gt_alpha`` (where there is an alpha), both (1, H, W), and to
    train ``gt_fg`` and ``gt_bg``, (3, H, W), each a ``PixelData`` whose ``data`` have the dtype
    that came. Its metainfo are ``img_path`` (to train the foreground's), ``ori_shape`` and
    ``img_shape``, (H, W) of the file and of ``inputs``.
    """

    def __call__(self, results: dict) -> dict:
        """Return ``inputs`` and ``data_samples``."""
        metainfo = dict(
            img_path=results['fg_path' if 'fg_path' in results else 'img_path'],
            ori_shape=results['ori_shape'],
            img_shape=results['img'].shape[:2],
        )
        sample = BaseDataElement(metainfo=metainfo)
        sample.trimap = PixelData(data=_to_tensor(results['trimap']))
        for key in ('alpha', 'fg', 'bg'):
            if key in results:
                sample.set_data({f'gt_{key}': PixelData(data=_to_tensor(results[key]))})
        return dict(inputs=_to_tensor(results['img']), data_samples=sample)
