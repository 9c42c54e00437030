"""Alpha of an image and its trimap that are no part of a data set."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, PixelData

from .files import check_same_size, normalize_trimap


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
