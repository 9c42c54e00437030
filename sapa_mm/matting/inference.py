"""Alpha of an image and its trimap that are no part of a data set."""

from collections.abc import Mapping
from typing import cast

import cv2
import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, PixelData

from .files import UNKNOWN, check_same_size, normalize_trimap


def trimap_sample(trimap: np.ndarray) -> BaseDataElement:
    """Make the data sample of an image of which the trimap is known.

    Args:
        trimap: (H, W), uint8, of 0, 128 and 255.
    """
    data = PixelData(data=torch.from_numpy(trimap.copy())[None])
    return BaseDataElement(
        metainfo=dict(img_shape=trimap.shape, ori_shape=trimap.shape), trimap=data
    )


def predict_alpha(model: BaseModel, image: np.ndarray, trimap: np.ndarray) -> BaseDataElement:
    """Estimate alpha of one image.

    Args:
        model: A `GuidedMattingNet`, in evaluation mode.
        image: (H, W, 3), uint8, BGR.
        trimap: (H, W), uint8: 0 is background, 255 foreground and about 128 unknown.

    Returns:
        Its data sample, with ``pred_alpha``, (1, H, W), uint8.

    Raises:
        ValueError: A trimap of another size or with other values.
    """
    check_same_size(image=image, trimap=trimap)
    trimap = normalize_trimap(trimap, 'trimap')
    inputs = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    data: Mapping = dict(inputs=[inputs], data_samples=[trimap_sample(trimap)])
    with torch.no_grad():
        return cast(list, model.test_step(cast(dict, data)))[0]


def reduced_size(size: tuple[int, int], max_size: int) -> tuple[int, int]:
    """Reduce a size until its longer side is ``max_size``, in proportion; a smaller one stays.

    Args:
        size: Height and width.
        max_size: The longer side of the result, at most.

    Returns:
        Height and width, of 1 at least.
    """
    scale = min(1.0, max_size / max(size))
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width


def reduce_trimap(trimap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce a trimap so that what is known stays right.

    A pixel of the result is foreground, or background, where all of the pixels that it covers, in
    part or whole, are; any other is unknown. A thin band of unknown pixels is not lost, as it is to
    interpolation by the nearest pixel.

    Args:
        trimap: (H, W), uint8, of 0, 128 and 255.
        size: Height and width of the result, neither above the trimap's.

    Returns:
        (H', W'), uint8, of 0, 128 and 255.
    """

    def covers_any(mask: np.ndarray) -> np.ndarray:
        return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) > 0

    reduced = np.full(size, UNKNOWN, np.uint8)
    reduced[~covers_any(trimap != 0)] = 0
    reduced[~covers_any(trimap != 255)] = 255
    return reduced


def predict_reduced(
    model: BaseModel, image: np.ndarray, trimap: np.ndarray, max_size: int
) -> np.ndarray:
    """Estimate alpha of one image at a smaller size, which takes less memory and loses fine detail.

    The image is reduced by areas, and its trimap by `reduce_trimap`. Alpha is enlarged bilinearly,
    and the trimap of the full size overwrites it where that knows it.

    Args:
        model: A `GuidedMattingNet`, in evaluation mode.
        image: (H, W, 3), uint8, BGR.
        trimap: (H, W), uint8: 0 is background, 255 foreground and about 128 unknown.
        max_size: The longer side that the network sees, at most, in pixels.

    Returns:
        Alpha, (H, W), uint8.

    Raises:
        ValueError: A trimap of another size or with other values, or ``max_size`` below 1.
    """
    if max_size < 1:
        raise ValueError(f'max_size: expected a positive int, got {max_size!r}')
    check_same_size(image=image, trimap=trimap)
    trimap = normalize_trimap(trimap, 'trimap')
    height, width = trimap.shape
    size = reduced_size((height, width), max_size)
    small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    sample = predict_alpha(model, small, reduce_trimap(trimap, size))
    alpha = sample.pred_alpha.data[0].cpu().numpy()
    alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(trimap == UNKNOWN, alpha, trimap)
