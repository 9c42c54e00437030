"""Superpixels: an image's, from a backbone that clusters, and how well they fit its labels."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import METRICS, MODELS
from mmseg.structures import SegDataSample
from prettytable import PrettyTable
from torch import Tensor, nn
from torch.nn import functional as F

from ..frameworks import require
from ..ops.checks import check_int
from ..upsamplers.soft_clustering import superpixels
from .clustered_features import ClusteredFeatures

# This is the radius of boundary recall over the image's diagonal.
RADIUS_RATIO = 0.0025


def _check_maps(superpixel_map: np.ndarray, label: np.ndarray) -> None:
    """Raise ValueError unless both are maps (H, W) of one size."""
    if label.ndim != 2 or superpixel_map.shape != label.shape:
        raise ValueError(
            f'superpixel_map: expected the shape (H, W) of label, {label.shape}, got '
            f'{superpixel_map.shape}'
        )


def achievable_segmentation_accuracy(
    superpixel_map: np.ndarray, label: np.ndarray, ignore_index: int = 255
) -> float:
    r"""Compute the accuracy of the best segmentation that keeps every superpixel whole.

    .. math:: \mathrm{ASA} = \frac{1}{N} \sum_k \max_c |S_k \cap G_c|

    Args:
        superpixel_map: Superpixels (H, W), integers.
        label: Classes or segments (H, W), integers.
        ignore_index: Pixels with this label do not count. Default: 255.

    Returns:
        In [0, 1]; NaN if no pixel counts.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: Maps of different sizes.
    """
    _check_maps(superpixel_map, label)
    with require('scikit-image', 'achievable_segmentation_accuracy', 'scikit-image'):
        from skimage.metrics import contingency_table
    valid = label != ignore_index
    if not valid.any():
        return math.nan
    # scikit-image builds a table up to the largest number.
    _, places = np.unique(superpixel_map[valid], return_inverse=True)
    table = contingency_table(label[valid], places)
    return float(table.max(axis=0).sum() / np.count_nonzero(valid))


def boundary_recall(
    superpixel_map: np.ndarray,
    label: np.ndarray,
    ignore_index: int = 255,
    radius: int | None = None,
) -> float:
    """Compute the share of the labels' boundary pixels with a superpixel's boundary nearby.

    A boundary pixel has a neighbour of another number above, below, left or right. Nearby is within
    ``radius`` pixels along both axes.

    Args:
        superpixel_map: Superpixels (H, W), integers.
        label: Classes or segments (H, W), integers.
        ignore_index: Pixels with this label, and their neighbours, are no boundary. Default: 255.
        radius: In pixels. Default: 0.0025 of the image's diagonal, rounded.

    Returns:
        In [0, 1]; NaN if the label has no boundary.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: ``radius`` is no int.
        ValueError: Maps of different sizes, or a negative radius.
    """
    _check_maps(superpixel_map, label)
    if radius is None:
        radius = round(RADIUS_RATIO * math.hypot(*label.shape))
    check_int('radius', radius, low=0)
    with require('scikit-image', 'boundary_recall', 'scikit-image'):
        from skimage.segmentation import find_boundaries
    ignored = (label == ignore_index).astype(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    true = find_boundaries(label, connectivity=1) & (cv2.dilate(ignored, cross) == 0)
    if not true.any():
        return math.nan
    found = find_boundaries(superpixel_map, connectivity=1).astype(np.uint8)
    nearby = cv2.dilate(found, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)) > 0
    return float(np.count_nonzero(true & nearby) / np.count_nonzero(true))


def image_superpixels(
    model: nn.Module,
    inputs: Tensor,
    metas: Sequence[Mapping],
    features: Sequence[Tensor] | None = None,
) -> list[dict[int, Tensor]]:
    """Find the superpixels of images at every level of the model's backbone.

    Args:
        model: A segmentor whose backbone clusters.
        inputs: Preprocessed images (N, 3, height, width), whole.
        metas: Meta information of each image, as mmseg's data samples have it.
        features: What the backbone gives for the images. Default: it is run.

    Returns:
        For each image the stride of a level, fine to coarse, to its superpixels (H, W), int64, in
        the image's original size: places of clusters in their grid.

    Raises:
        TypeError: The backbone does not cluster.
        ValueError: It has no level at all.
    """
    if features is None:
        features = model.backbone(inputs)
    if not isinstance(features, ClusteredFeatures):
        raise TypeError(
            'model: expected a backbone that clusters, such as HCResNet, got '
            f'{type(model.backbone).__name__}'
        )
    if not features.assignments:
        raise ValueError('model: expected a backbone with levels of at least 1, got 0')
    levels = superpixels(features.assignments, tuple(inputs.shape[2:]))
    return [
        {
            stride: _to_original(level[i], meta)
            for stride, level in zip(model.backbone.cluster_strides, levels, strict=True)
        }
        for i, meta in enumerate(metas)
    ]


def _to_original(labels: Tensor, meta: Mapping) -> Tensor:
    """Undo padding, flip and resizing of a label map (height, width)."""
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0)))
    height, width = labels.shape
    labels = labels[top : height - bottom, left : width - right]
    if meta.get('flip', False):
        labels = labels.flip(0 if meta['flip_direction'] == 'vertical' else 1)
    # Nearest interpolation takes no integers, and float64 holds them exactly.
    size = tuple(meta['ori_shape'][:2])
    resized = F.interpolate(labels[None, None].double(), size, mode='nearest-exact')
    return resized[0, 0].long()


@MODELS.register_module()
class SuperpixelEncoderDecoder(EncoderDecoder):
    """An ``EncoderDecoder`` that predicts the superpixels of its backbone as well.

    They are under ``pred_superpixels``, (levels, H, W) with the levels' strides in its meta
    information, for `SuperpixelMetric`. They are those of the whole image, for which sliding
    windows take one more run of the backbone. With test-time augmentation they are of the last of
    an image's views, and so is what is measured of them.
    """

    def predict(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict classes and superpixels.

        Args:
            inputs: Preprocessed images (N, 3, height, width).
            data_samples: Their data samples. Default: images in their original size.

        Returns:
            The data samples with ``pred_sem_seg``, ``seg_logits`` and ``pred_superpixels``.
        """
        features = []

        def keep(module: nn.Module, args: tuple, out: Sequence[Tensor]) -> None:
            if args[0] is inputs:
                features.append(out)

        with self.backbone.register_forward_hook(keep):
            samples = super().predict(inputs, data_samples)
        size = dict(ori_shape=tuple(inputs.shape[2:]))
        metas = [size | sample.metainfo for sample in samples]
        maps = image_superpixels(self, inputs, metas, *features[:1])
        for sample, levels in zip(samples, maps, strict=True):
            data = torch.stack(list(levels.values()))
            sample.pred_superpixels = PixelData(data=data, metainfo=dict(strides=tuple(levels)))
        return samples


@METRICS.register_module()
class SuperpixelMetric(BaseMetric):
    """Measure the achievable segmentation accuracy and boundary recall of superpixels, in percent.

    It needs the segmentor `SuperpixelEncoderDecoder` and scikit-image. For every level it reports
    ``'ASA/sS'`` and ``'BR/sS'``, with S the stride of its clusters, the means over all images.

    Args:
        ignore_index: Pixels with this label do not count. Default: 255.
        collect_device: Where the results of several processes are gathered, 'cpu' or 'gpu'.
            Default: 'cpu'.
        prefix: Put before the names as in 'prefix/ASA/s16'. Default: None.

    Raises:
        ImportError: scikit-image is not installed.
    """

    def __init__(
        self, ignore_index: int = 255, collect_device: str = 'cpu', prefix: str | None = None
    ):
        with require('scikit-image', 'SuperpixelMetric', 'scikit-image'):
            import skimage  # noqa: F401  now, and not at the first validation
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Measure the superpixels of one batch.

        Args:
            data_batch: Not used.
            data_samples: One dict an image, with ``['pred_superpixels']`` and the classes (1, H, W)
                under ``['gt_sem_seg']['data']``.

        Raises:
            ValueError: No superpixels, or of another size than the label.
        """
        for sample in data_samples:
            if 'pred_superpixels' not in sample:
                raise ValueError(
                    'data_samples: expected pred_superpixels, which the segmentor '
                    f'SuperpixelEncoderDecoder gives, got {sorted(sample)}'
                )
            label = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy()
            predicted = sample['pred_superpixels']
            self.results.append(
                {
                    stride: (
                        achievable_segmentation_accuracy(level, label, self.ignore_index),
                        boundary_recall(level, label, self.ignore_index),
                        len(np.unique(level)),
                    )
                    for stride, level in zip(
                        predicted['strides'], predicted['data'].cpu().numpy(), strict=True
                    )
                }
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Average over the images and print a table.

        Args:
            results: For each image and stride ASA, boundary recall and the number of superpixels.

        Returns:
            ASA and boundary recall of every level, in percent, rounded to two decimals.
        """
        table = PrettyTable(['stride', 'superpixels', 'ASA', 'BR'])
        metrics = {}
        for stride in results[0]:
            columns = np.array([image[stride] for image in results]).T
            # An image without labels, or without boundaries, says nothing.
            known = [column[~np.isnan(column)] for column in columns]
            accuracy, recall, count = (part.mean() if part.size else np.nan for part in known)
            metrics[f'ASA/s{stride}'] = round(100 * float(accuracy), 2)
            metrics[f'BR/s{stride}'] = round(100 * float(recall), 2)
            table.add_row(
                [stride, round(count), metrics[f'ASA/s{stride}'], metrics[f'BR/s{stride}']]
            )
        print_log('\n' + table.get_string(), logger=MMLogger.get_current_instance())
        return metrics
