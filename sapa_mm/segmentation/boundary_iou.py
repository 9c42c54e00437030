"""Boundary IoU (Cheng et al., CVPR 2021) as a metric of mmsegmentation."""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from mmseg.registry import METRICS
from prettytable import PrettyTable

from ..ops.checks import check_bool, check_int


def mask_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the part of a mask that lies within ``width`` pixels of its contour.

    Distance is that of the chessboard, and the outside of the image counts as background, so a
    mask that touches the image's edge has a contour there.

    Args:
        mask: The mask (H, W), bool or uint8 of 0 and 1.
        width: How deep the boundary reaches into the mask, in pixels, at least 1.

    Returns:
        The boundary (H, W), bool.
    """
    mask = np.asarray(mask, dtype=np.uint8)
    # One ring of zeros is enough: every pixel within `width` of the edge has it in its window.
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return (mask > inner).astype(bool)


def boundary_areas(
    pred: np.ndarray,
    label: np.ndarray,
    *,
    num_classes: int,
    width: int,
    ignore_index: int = 255,
) -> tuple[np.ndarray, np.ndarray]:
    """Count, per class, the pixels that two boundaries share and those that either covers.

    Args:
        pred: Predicted classes (H, W), integers.
        label: True classes (H, W), integers.
        num_classes: Number of classes; values outside of [0, num_classes) belong to none.
        width: Width of the boundaries in pixels, at least 1.
        ignore_index: Pixels with this label belong to no class in either map.

    Returns:
        Intersection and union (num_classes,), int64, in pixels.
    """
    intersection = np.zeros(num_classes, dtype=np.int64)
    union = np.zeros(num_classes, dtype=np.int64)
    valid = label != ignore_index
    # One value stands for "no class", whatever was there.
    pred, label = (
        np.where(valid & (part >= 0) & (part < num_classes), part, num_classes).astype(np.int64)
        for part in (pred, label)
    )
    counts = np.bincount(np.concatenate([pred.ravel(), label.ravel()]), minlength=num_classes + 1)
    for index in np.flatnonzero(counts[:num_classes]):
        pred_mask, label_mask = pred == index, label == index
        # Both masks are empty outside of their common box, as mask_boundary takes it to be.
        x, y, w, h = cv2.boundingRect((pred_mask | label_mask).astype(np.uint8))
        window = slice(y, y + h), slice(x, x + w)
        pred_edge = mask_boundary(pred_mask[window], width)
        label_edge = mask_boundary(label_mask[window], width)
        shared = np.count_nonzero(pred_edge & label_edge)
        intersection[index] = shared
        union[index] = np.count_nonzero(pred_edge) + np.count_nonzero(label_edge) - shared
    return intersection, union


@METRICS.register_module()
class BoundaryIoU(BaseMetric):
    """Measure the IoU of the predicted and true boundaries of every class.

    The boundary of a class is the part of its mask within d pixels of the mask's contour, with d
    the image diagonal times ``dilation_ratio``, rounded, and at least 1. The image's edge counts as
    contour. Per class, intersection and union are summed over all images before they are divided;
    classes that no image holds, neither as label nor as prediction, do not enter the mean. Unlike
    mIoU the value does not grow with the interior of large objects.

    Use it beside mIoU::

        val_evaluator = [
            dict(type='IoUMetric', iou_metrics=['mIoU']),
            dict(type='BoundaryIoU'),
        ]

    It reports 'mBIoU' in percent and prints a table of all classes. A narrow boundary asks for more
    precision than a wide one, which holds thin objects whole: ``widths`` tell the two apart.

    Args:
        dilation_ratio: d over the image diagonal, in (0, 1]. Default: 0.02.
        ignore_index: Pixels with this label are removed from the label and from the prediction
            before boundaries are drawn. Default: 255.
        collect_device: Where the results of several processes are gathered, 'cpu' or 'gpu'.
            Default: 'cpu'.
        prefix: Put before the name as in 'prefix/mBIoU'. Default: None.
        widths: Further d, in pixels of the label, each at least 1; 2 is reported as 'mBIoU-2px'.
            Default: none.
        per_class: Whether every class that occurs is reported too, as 'BIoU.car', and with
            ``widths`` 'BIoU-2px.car'. Default: False.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``dilation_ratio``, ``widths`` or ``collect_device`` is out of range, if
            prediction and label differ in size, or if the dataset names no classes.
    """

    def __init__(
        self,
        dilation_ratio: float = 0.02,
        ignore_index: int = 255,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        widths: Sequence[int] = (),
        per_class: bool = False,
    ) -> None:
        if isinstance(dilation_ratio, bool) or not isinstance(dilation_ratio, Real):
            raise TypeError(
                f'dilation_ratio: expected a number in (0, 1], got {dilation_ratio!r} '
                f'of type {type(dilation_ratio).__name__}'
            )
        if not 0 < dilation_ratio <= 1:
            raise ValueError(f'dilation_ratio: expected a number in (0, 1], got {dilation_ratio!r}')
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral):
            raise TypeError(
                f'ignore_index: expected an int, got {ignore_index!r} '
                f'of type {type(ignore_index).__name__}'
            )
        if collect_device not in ('cpu', 'gpu'):
            raise ValueError(f"collect_device: expected 'cpu' or 'gpu', got {collect_device!r}")
        if prefix is not None and not isinstance(prefix, str):
            raise TypeError(f'prefix: expected a str or None, got {type(prefix).__name__}')
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not isinstance(widths, Sequence) or isinstance(widths, str):
            raise TypeError(f'widths: expected a sequence of ints, got {widths!r}')
        for width in widths:
            check_int('widths', width, 1)
        check_bool('per_class', per_class)
        self.dilation_ratio = float(dilation_ratio)
        self.widths = tuple(widths)
        self.per_class = per_class
        self.ignore_index = int(ignore_index)

    def boundary_width(self, height: int, width: int) -> int:
        """Return d in pixels for an image of ``height`` by ``width`` pixels."""
        return max(1, round(self.dilation_ratio * math.hypot(height, width)))

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add the boundary areas of one batch to the results.

        Args:
            data_batch: Not used.
            data_samples: One dict an image, with the class maps (1, H, W) or (H, W) under
                ``['pred_sem_seg']['data']`` and ``['gt_sem_seg']['data']``.
        """
        classes = (self.dataset_meta or {}).get('classes')
        if not classes:
            raise ValueError(
                f"dataset_meta: expected the class names under 'classes', got {self.dataset_meta!r}"
            )
        for sample in data_samples:
            pred = self._class_map(sample['pred_sem_seg']['data'])
            label = self._class_map(sample['gt_sem_seg']['data'])
            if pred.shape != label.shape:
                raise ValueError(
                    'data_samples: expected prediction and label of one size, got '
                    f'{pred.shape} and {label.shape}'
                )
            self.results.append(
                [
                    boundary_areas(
                        pred,
                        label,
                        num_classes=len(classes),
                        width=width,
                        ignore_index=self.ignore_index,
                    )
                    for width in (self.boundary_width(*label.shape), *self.widths)
                ]
            )

    @staticmethod
    def _class_map(data: torch.Tensor) -> np.ndarray:
        """Return a class map (1, H, W) or (H, W) as an array (H, W)."""
        if data.ndim not in (2, 3) or (data.ndim == 3 and len(data) != 1):
            raise ValueError(
                'data_samples: expected class maps (1, H, W) or (H, W), got shape '
                f'{tuple(data.shape)}'
            )
        return data.reshape(data.shape[-2:]).cpu().numpy()

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Divide the summed areas and print the table of classes.

        Args:
            results: Intersection and union (num_classes,) of every width and image.

        Returns:
            'mBIoU' in percent, rounded to two decimals; NaN if no class occurs at all. What
            ``widths`` and ``per_class`` ask for comes after it.
        """
        logger = MMLogger.get_current_instance()
        classes = self.dataset_meta['classes']
        names = ['BIoU', *(f'BIoU-{width}px' for width in self.widths)]
        zeros = np.zeros((len(names), 2, len(classes)), np.int64)
        areas = np.sum([zeros, *results], axis=0)
        iou = np.full((len(names), len(classes)), np.nan)
        np.divide(areas[:, 0], areas[:, 1], out=iou, where=areas[:, 1] > 0)

        percent = np.round(iou * 100, 2)
        table = PrettyTable()
        table.add_column('Class', list(classes))
        for name, column in zip(names, percent.tolist(), strict=True):
            table.add_column(name, column)
        print_log('per class boundary results:', logger)
        print_log('\n' + table.get_string(), logger=logger)

        found = {}
        for name, row in zip(names, iou, strict=True):
            occurs = row[~np.isnan(row)]
            found[f'm{name}'] = float(np.round(occurs.mean() * 100, 2)) if occurs.size else math.nan
        if self.per_class:
            for name, row in zip(names, percent, strict=True):
                found |= {
                    f'{name}.{label}': float(value)
                    for label, value in zip(classes, row, strict=True)
                    if not math.isnan(value)
                }
        return found
