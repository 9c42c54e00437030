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
from ..ops.checks import check_choice, check_int
from ..upsamplers.soft_clustering import superpixels
from .clustered_features import ClusteredFeatures

# This is the radius of Stutz's boundary recall over the image's diagonal.
RADIUS_RATIO = 0.0025
# This is the radius of SEAL's boundary recall, in pixels.
SEAL_RADIUS = 1
# These are measured of superpixels, in the order of `superpixel_measures`.
MEASURES = ('ASA', 'BR', 'BR-SEAL', 'count')


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
    form: str = 'stutz',
) -> float:
    """Compute the share of the labels' boundary pixels with a superpixel's boundary nearby.

    Nearby is within ``radius`` pixels along both axes. What a boundary pixel is, in the labels and
    in the superpixels, the two published forms say differently; the second is lower by ten points
    and more:

    - ``'stutz'`` (Stutz et al., CVIU 2018): it has a neighbour of another number above, below, left
      or right, so that boundaries are two pixels wide;
    - ``'seal'`` (SEAL, Tu et al., CVPR 2018, and SSN): it has one on its right or below.

    Args:
        superpixel_map: Superpixels (H, W), integers.
        label: Classes or segments (H, W), integers.
        ignore_index: Pixels with this label, and their neighbours, are no boundary. Default: 255.
        radius: In pixels. Default: 0.0025 of the image's diagonal, rounded, and 1 for ``'seal'``.
        form: ``'stutz'`` or ``'seal'``. Default: ``'stutz'``.

    Returns:
        In [0, 1]; NaN if the label has no boundary.

    Raises:
        TypeError: ``radius`` is no int.
        ValueError: Maps of different sizes, a negative radius, or another form.
    """
    _check_maps(superpixel_map, label)
    check_choice('form', form, ('stutz', 'seal'))
    if radius is None:
        diagonal = math.hypot(*label.shape)
        radius = SEAL_RADIUS if form == 'seal' else round(RADIUS_RATIO * diagonal)
    check_int('radius', radius, low=0)
    ignored = (label == ignore_index).astype(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    true = _find_boundaries(label, form) & (cv2.dilate(ignored, cross) == 0)
    if not true.any():
        return math.nan
    found = _find_boundaries(superpixel_map, form).astype(np.uint8)
    nearby = cv2.dilate(found, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)) > 0
    return float(np.count_nonzero(true & nearby) / np.count_nonzero(true))


def _find_boundaries(numbers: np.ndarray, form: str) -> np.ndarray:
    """Find the boundary pixels of a map (H, W) in a form of `boundary_recall`."""
    found = np.zeros(numbers.shape, bool)
    below = numbers[:-1] != numbers[1:]
    right = numbers[:, :-1] != numbers[:, 1:]
    found[:-1] |= below
    found[:, :-1] |= right
    if form == 'stutz':
        found[1:] |= below
        found[:, 1:] |= right
    return found


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
            stride: to_original(level[i], meta)
            for stride, level in zip(model.backbone.cluster_strides, levels, strict=True)
        }
        for i, meta in enumerate(metas)
    ]


def to_original(labels: Tensor, meta: Mapping) -> Tensor:
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


def level_names(predicted: Mapping) -> list[str]:
    """Name the levels of predicted superpixels, as in 'k100' or 's16'.

    Args:
        predicted: ``pred_superpixels`` or a dict of it, with ``numbers``, those asked for, or
            ``strides``.
    """
    if 'numbers' in predicted:
        return [f'k{number}' for number in predicted['numbers']]
    return [f's{stride}' for stride in predicted['strides']]


def superpixel_measures(
    superpixel_map: np.ndarray, labels: Sequence[np.ndarray], ignore_index: int = 255
) -> np.ndarray:
    """Measure the superpixels of an image against each of its annotations.

    Args:
        superpixel_map: Superpixels (H, W), integers.
        labels: Classes or segments (A, H, W), integers.
        ignore_index: Pixels with this label do not count. Default: 255.

    Returns:
        (A, 4), the `MEASURES` of every annotation: ASA and both forms of boundary recall, in [0, 1]
        or NaN, and the number of superpixels, which is the same for all.

    Raises:
        ValueError: Maps of different sizes.
    """
    count = len(np.unique(superpixel_map))
    return np.array(
        [
            (
                achievable_segmentation_accuracy(superpixel_map, label, ignore_index),
                boundary_recall(superpixel_map, label, ignore_index),
                boundary_recall(superpixel_map, label, ignore_index, form='seal'),
                count,
            )
            for label in labels
        ]
    )


def mean_measures(images: Sequence[np.ndarray]) -> dict[str, float]:
    """Average what `superpixel_measures` gives.

    Args:
        images: That of every image, (A, 4).

    Returns:
        Name of each of the `MEASURES` to its mean over all pairs of an image and an annotation; in
        [0, 1] or, where no pair has it, NaN, and the number of superpixels.
    """
    # An image without labels, or without boundaries, says nothing.
    known = [column[~np.isnan(column)] for column in np.concatenate(images).T]
    means = (float(column.mean()) if column.size else math.nan for column in known)
    return dict(zip(MEASURES, means, strict=True))


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
    """Measure how well superpixels fit the labels, and how many there are.

    It needs predictions with ``pred_superpixels`` and scikit-image. Of every level it reports the
    achievable segmentation accuracy (``'ASA/LEVEL'``), both forms of boundary recall
    (``'BR/LEVEL'``, ``form='stutz'``, and ``'BR-SEAL/LEVEL'``), in percent, and the number of
    superpixels that came out (``'count/LEVEL'``). LEVEL is 's16' for clusters of stride 16, as
    `SuperpixelEncoderDecoder` has them, and 'k100' where 100 superpixels were asked for.

    All are means over pairs of an image and one of its annotations, where a sample has
    ``annotations`` in its meta information, and else over images, with their classes.

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
            data_samples: One dict an image, with ``['pred_superpixels']``, whose ``['data']`` is
                (levels, H, W) and whose ``['numbers']`` or ``['strides']`` name the levels, and
                with ``['annotations']`` (A, H, W) or the classes (1, H, W) under
                ``['gt_sem_seg']['data']``.

        Raises:
            ValueError: No superpixels, or of another size than the label.
        """
        for sample in data_samples:
            if 'pred_superpixels' not in sample:
                raise ValueError(
                    'data_samples: expected pred_superpixels, which the segmentor '
                    f'SuperpixelEncoderDecoder gives, got {sorted(sample)}'
                )
            labels = sample.get('annotations')
            if labels is None:
                labels = sample['gt_sem_seg']['data'].cpu().numpy()
            predicted = sample['pred_superpixels']
            maps = predicted['data'].cpu().numpy()
            self.results.append(
                {
                    level: superpixel_measures(superpixel_map, labels, self.ignore_index)
                    for level, superpixel_map in zip(level_names(predicted), maps, strict=True)
                }
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Average over the images and their annotations, and print a table.

        Args:
            results: For each image and level what `superpixel_measures` gives.

        Returns:
            Of every level ASA and both forms of boundary recall, in percent, and the number of
            superpixels, rounded to two decimals.
        """
        table = PrettyTable(['level', *MEASURES])
        metrics = {}
        for level in results[0]:
            means = mean_measures([image[level] for image in results])
            values = {
                name: round(value if name == 'count' else 100 * value, 2)
                for name, value in means.items()
            }
            metrics |= {f'{name}/{level}': value for name, value in values.items()}
            table.add_row([level, *values.values()])
        print_log('\n' + table.get_string(), logger=MMLogger.get_current_instance())
        return metrics
