"""Transforms that change a foreground and its alpha before they are composited."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from mmengine.registry import TRANSFORMS

from ..ops.checks import check_positive_int
from .files import read_foreground
from .transforms import MattingTransform, uniform


def _check_probability(name: str, value: float) -> None:
    """Raise ValueError unless a probability is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f'{name}: expected 0 to 1, got {value!r}')


def _check_below(name: str, value: float, limit: float) -> None:
    """Raise ValueError unless a number is at least 0 and below a limit."""
    if not 0 <= value < limit:
        raise ValueError(f'{name}: expected at least 0 and less than {limit}, got {value!r}')


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Take the nearest pixel, so that no new values of alpha come up."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def add_foreground(
    fg1: np.ndarray, alpha1: np.ndarray, fg2: np.ndarray, alpha2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put a foreground before another one.

    alpha = 1 - (1 - a1)(1 - a2) and F = (F1 a1 + F2 (1 - a1) a2) / alpha, or F1 where alpha is 0;
    both are rounded to 8 bits at the end.

    Args:
        fg1: The foreground in front, (H, W, 3), uint8.
        alpha1: Its alpha a1, (H, W), uint8, in units of 1/255.
        fg2: The one behind, (H, W, 3), uint8.
        alpha2: Its alpha a2.

    Returns:
        F, (H, W, 3), and alpha, (H, W), both uint8.
    """
    a1, a2 = (alpha.astype(np.float32) / 255 for alpha in (alpha1, alpha2))
    alpha = 1 - (1 - a1) * (1 - a2)
    share = np.divide(a1, alpha, out=np.ones_like(a1), where=alpha > 0)
    # F2 + share (F1 - F2) is the same, in fewer passes.
    fg = np.asarray(cv2.subtract(fg1, fg2, dtype=cv2.CV_32F), np.float32)
    fg *= share[..., None]
    fg += fg2
    return np.rint(fg).astype(np.uint8), np.rint(255 * alpha).astype(np.uint8)


@TRANSFORMS.register_module()
class AddForeground(MattingTransform):
    """Put the foreground before a second one, which is read from the files in ``second``.

    `add_foreground` has the equation. The second one is resized to the first one's size, whatever
    its shape, by nearest pixels as later steps resize. Where both leave no background anywhere, the
    first one stays alone, as there would be nothing to learn.

    Args:
        prob: Probability that a second one is added.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A probability outside of [0, 1], or a file that does not hold what it should.
    """

    def __init__(self, prob: float = 0.5):
        _check_probability('prob', prob)
        self.prob = prob

    def __call__(self, results: dict) -> dict:
        """Change ``fg`` and ``alpha``."""
        if uniform(0, 1) >= self.prob:
            return results
        size = results['alpha'].shape
        second = [_resize(image, *size) for image in read_foreground(**results['second'])]
        fg, alpha = add_foreground(results['fg'], results['alpha'], *second)
        if (alpha < 255).any():
            results['fg'], results['alpha'] = fg, alpha
        return results


@TRANSFORMS.register_module()
class ResizeSquare(MattingTransform):
    """Resize ``fg`` and ``alpha`` to a square by nearest pixels.

    Args:
        prob: Probability that they are resized.
        size: Height and width in pixels.

    Raises:
        TypeError: ``size`` is no int.
        ValueError: A probability outside of [0, 1], or a size that is not positive.
    """

    def __init__(self, prob: float = 0.25, size: int = 640):
        _check_probability('prob', prob)
        check_positive_int('size', size)
        self.prob, self.size = prob, size

    def __call__(self, results: dict) -> dict:
        """Change ``fg`` and ``alpha``."""
        if uniform(0, 1) < self.prob:
            for key in ('fg', 'alpha'):
                results[key] = _resize(results[key], self.size, self.size)
        return results


def affine_matrix(
    size: tuple[int, int],
    angle: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shear: float = 0.0,
    flips: tuple[bool, bool] = (False, False),
) -> np.ndarray:
    """Make the matrix that flips, scales, shears and then rotates about an image's centre.

    Args:
        size: Height and width of the image.
        angle: Degrees, clockwise as the image is seen.
        scale: Factors along x and y.
        shear: Degrees by which the y axis is inclined.
        flips: Whether x and y are flipped.

    Returns:
        (2, 3), float64: it maps pixels (x, y, 1) of the image to those of the result.
    """
    height, width = size
    turn, lean = math.radians(angle), math.tan(math.radians(shear))
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    factors = [-s if flip else s for s, flip in zip(scale, flips, strict=True)]
    linear = rotation @ np.array([[1.0, lean], [0.0, 1.0]]) @ np.diag(factors)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.column_stack([linear, centre - linear @ centre])


@TRANSFORMS.register_module()
class RandomAffineForeground(MattingTransform):
    """Flip, scale, shear and rotate ``fg`` and ``alpha`` about the centre, by nearest pixels.

    The size stays. What comes in from outside has alpha 0 and is black.

    Args:
        rotation: Largest angle in degrees, to either side.
        scale: Bounds of the factors of width and height, each of which is drawn uniformly.
        shear: Largest angle of shear in degrees, to either side, less than 90.
        flip: Probability of a flip from left to right, and of one upside down.

    Raises:
        ValueError: Angles below 0 or too large, bounds that are not two positive numbers in order,
            or a probability outside of [0, 1].
    """

    def __init__(
        self,
        rotation: float = 30,
        scale: Sequence[float] = (0.8, 1.25),
        shear: float = 10,
        flip: float = 0.5,
    ):
        _check_below('rotation', rotation, 360)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f'scale: expected two positive numbers in order, got {scale!r}')
        _check_below('shear', shear, 90)
        _check_probability('flip', flip)
        self.rotation, self.scale = rotation, tuple(scale)
        self.shear, self.flip = shear, flip

    def __call__(self, results: dict) -> dict:
        """Change ``fg`` and ``alpha``."""
        height, width = results['alpha'].shape
        matrix = affine_matrix(
            (height, width),
            angle=uniform(-self.rotation, self.rotation),
            scale=(uniform(*self.scale), uniform(*self.scale)),
            shear=uniform(-self.shear, self.shear),
            flips=(uniform(0, 1) < self.flip, uniform(0, 1) < self.flip),
        )
        for key in ('fg', 'alpha'):
            results[key] = cv2.warpAffine(
                results[key], matrix, (width, height), flags=cv2.INTER_NEAREST
            )
        return results


def shift_hsv(image: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """Turn the hue of an image and scale saturation and value.

    Args:
        image: (H, W, 3), uint8, BGR.
        hue: Degrees that are added.
        saturation: Factor of the saturation, which ends at 1.
        value: Factor of the value, the largest of B, G and R, which ends at 255.

    Returns:
        (H, W, 3), uint8, BGR. Grey stays grey.
    """
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_BGR2HSV)
    h, s, v = cv2.split(hsv)
    h = np.remainder(h + np.float32(hue), np.float32(360))
    s = np.minimum(s * np.float32(saturation), np.float32(1))
    v = np.minimum(v * np.float32(value), np.float32(1))
    shifted = cv2.cvtColor(cv2.merge([h, s, v]), cv2.COLOR_HSV2BGR)
    return np.clip(np.rint(255 * shifted), 0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
class JitterForeground(MattingTransform):
    """Change hue, saturation and value of ``fg``; see `shift_hsv`.

    The papers give no ranges; the defaults are moderate ones of this project.

    Args:
        hue: Largest turn of the hue in degrees, to either side.
        saturation: The factor of the saturation is drawn from 1 - ``saturation`` to
            1 + ``saturation``.
        value: Likewise for the value.

    Raises:
        ValueError: ``hue`` is not from 0 to 180, or another one not from 0 to less than 1.
    """

    def __init__(self, hue: float = 20, saturation: float = 0.2, value: float = 0.2):
        if not 0 <= hue <= 180:
            raise ValueError(f'hue: expected 0 to 180, got {hue!r}')
        _check_below('saturation', saturation, 1)
        _check_below('value', value, 1)
        self.hue, self.saturation, self.value = hue, saturation, value

    def __call__(self, results: dict) -> dict:
        """Change ``fg``."""
        hue = uniform(-self.hue, self.hue)
        saturation = uniform(1 - self.saturation, 1 + self.saturation)
        value = uniform(1 - self.value, 1 + self.value)
        results['fg'] = shift_hsv(results['fg'], hue, saturation, value)
        return results
