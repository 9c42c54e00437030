"""The numbers by which depth is compared, of Eigen et al. (2014)."""

import math
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import MMLogger, print_log
from mmseg.evaluation.metrics import DepthMetric
from mmseg.registry import METRICS
from prettytable import PrettyTable
from torch import Tensor

from ..ops.checks import check_positive

# Eigen's crop of NYU's frames, of 480 x 640 pixels: rows, then columns.
EIGEN_CROP = ((45, 471), (41, 601))
EIGEN_SIZE = (480, 640)


def check_crop(crop: object) -> None:
    """Raise ValueError unless it is None or ``'eigen'``."""
    if crop not in (None, 'eigen'):
        raise ValueError(f"crop: expected None or 'eigen', got {crop!r}")


def eigen_region(size: Sequence[int]) -> tuple[slice, slice]:
    """Return Eigen's crop of an image of any size, in proportion to NYU's frames.

    Args:
        size: (H, W).
    """
    return tuple(  # type: ignore[return-value]
        slice(*(round(bound * side / whole) for bound in bounds))
        for bounds, side, whole in zip(EIGEN_CROP, size, EIGEN_SIZE, strict=True)
    )


def depth_errors(pred: Tensor, depth: Tensor) -> dict[str, float]:
    r"""Compute the numbers of one image.

    With p the prediction and g the truth: d1 to d3 are the shares of pixels with
    :math:`\max(g/p, p/g) < 1.25^i`; abs_rel is the mean of :math:`|g-p|/g`, sq_rel of
    :math:`(g-p)^2/g`, log10 of :math:`|\log_{10} g - \log_{10} p|`; rmse and rmse_log are the roots
    of the mean squares of :math:`g-p` and of :math:`e = \ln p - \ln g`; silog is
    :math:`100 \sqrt{\overline{e^2} - \bar{e}^2}`.

    Args:
        pred: Predicted depth of the pixels, positive, (P,), in metres.
        depth: True depth of them, positive, (P,), in metres.

    Returns:
        A number for each of ``DepthMetric.METRICS``.
    """
    pred, depth = pred.double(), depth.double()
    ratio = torch.maximum(pred / depth, depth / pred)
    difference, error = pred - depth, pred.log() - depth.log()
    found = {f'd{i}': (ratio < 1.25**i).double().mean() for i in (1, 2, 3)}
    found['abs_rel'] = (difference.abs() / depth).mean()
    found['sq_rel'] = (difference.square() / depth).mean()
    found['rmse'] = difference.square().mean().sqrt()
    found['rmse_log'] = error.square().mean().sqrt()
    found['log10'] = error.abs().mean() / math.log(10)
    found['silog'] = 100 * error.var(correction=0).sqrt()
    return {name: value.item() for name, value in found.items()}


@METRICS.register_module()
class EigenDepthMetric(DepthMetric):
    """mmseg's ``DepthMetric``, as the papers compute it.

    The prediction is brought into [``min_depth``, ``max_depth``], and the pixels count whose true
    depth is strictly between the two. The numbers of `depth_errors` are means over images, of which
    those without such a pixel do not count. A few numbers an image are kept, and no pixels.

    Args:
        depth_metrics: Names of the numbers to report, of ``DepthMetric.METRICS``. Default: all.
        min_depth: In metres, positive.
        max_depth: In metres.
        crop: ``'eigen'`` takes rows 45 to 470 and columns 41 to 600 of 480 x 640, and of other
            sizes what is there in proportion. Default: everything.
        **kwargs: ``DepthMetric``'s other arguments: ``collect_device``, ``prefix``, and
            ``output_dir`` with ``depth_scale_factor`` and ``format_only``, by which predictions are
            written as 16-bit images.

    Raises:
        TypeError: A depth that is no number.
        ValueError: Bounds that are not positive and in order, an unknown name or crop; later, a
            prediction of another size than the truth, or one that holds NaN.
    """

    format_only: bool

    def __init__(
        self,
        depth_metrics: Sequence[str] | None = None,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        crop: str | None = None,
        **kwargs: object,
    ):
        check_positive('min_depth', min_depth)
        check_positive('max_depth', max_depth)
        if min_depth >= max_depth:
            raise ValueError(f'max_depth: expected more than {min_depth} m, got {max_depth}')
        check_crop(crop)
        if kwargs.get('format_only') and not kwargs.get('output_dir'):
            raise ValueError('output_dir: expected a folder with format_only=True, got none')
        chosen = self.METRICS if depth_metrics is None else tuple(depth_metrics)
        unknown = [name for name in chosen if name not in self.METRICS]
        if unknown or not chosen:
            raise ValueError(
                f'depth_metrics: expected some of {", ".join(self.METRICS)}, got {depth_metrics}'
            )
        # The parent cannot be told the names: its check of their type raises TypeError.
        super().__init__(min_depth_eval=min_depth, max_depth_eval=max_depth, **kwargs)
        self.metrics = chosen
        self.crop = crop

    def process(self, data_batch: Mapping, data_samples: Sequence[Mapping]) -> None:
        """Compute the numbers of a batch, see ``DepthMetric``."""
        if self.output_dir is not None:
            self._write(data_batch, data_samples)
        if self.format_only:
            return
        for sample in data_samples:
            pred, depth = known_depth(sample, self.crop)
            inside = (depth > self.min_depth_eval) & (depth < self.max_depth_eval)
            pred, depth = pred[inside], depth[inside]
            if pred.isnan().any():
                raise ValueError(
                    f"pred_depth_map: expected depth, got NaN for '{sample.get('img_path')}'"
                )
            pred = pred.clamp(self.min_depth_eval, self.max_depth_eval)
            # mmengine drops a None, and then counts an image that a sampler repeats twice.
            self.results.append(depth_errors(pred, depth) if depth.numel() else {})

    def _write(self, data_batch: Mapping, data_samples: Sequence[Mapping]) -> None:
        """Have the parent write the predictions, without its numbers, for which it keeps pixels."""
        format_only = self.format_only
        self.format_only = True
        super().process(data_batch, data_samples)
        self.format_only = format_only

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Average the numbers over images and print them.

        Args:
            results: Those of every image; empty where no depth is known.

        Returns:
            The numbers by their names.

        Raises:
            ValueError: No image has a pixel whose depth is known.
        """
        logger = MMLogger.get_current_instance()
        if self.format_only:
            return super().compute_metrics(results)
        judged = [numbers for numbers in results if numbers]
        if not judged:
            raise ValueError(
                f'gt_depth_map: expected depth between {self.min_depth_eval} and '
                f'{self.max_depth_eval} m in some image, got none in {len(results)}'
            )
        if len(judged) < len(results):
            print_log(f'{len(results) - len(judged)} images without known depth skipped', logger)
        means = {
            name: sum(numbers[name] for numbers in judged) / len(judged) for name in self.metrics
        }
        table = PrettyTable(list(means))
        table.add_row([f'{mean:.4f}' for mean in means.values()])
        print_log(f'Depth of {len(judged)} images:\n{table}', logger)
        return means


def known_depth(sample: Mapping, crop: str | None = None) -> tuple[Tensor, Tensor]:
    """Take prediction and truth out of a data sample.

    Args:
        sample: A ``SegDataSample`` as a dict.
        crop: See `EigenDepthMetric`.

    Returns:
        Both (H, W), in metres, on the CPU: not every device has float64.

    Raises:
        ValueError: There is no truth, or they differ in size.
    """
    if 'gt_depth_map' not in sample:
        raise ValueError(
            'gt_depth_map: expected a true depth map, as LoadDepthMap gives it, got none for '
            f"'{sample.get('img_path')}'"
        )
    pred, depth = (
        sample[name]['data'].squeeze(0).cpu() for name in ('pred_depth_map', 'gt_depth_map')
    )
    if pred.shape != depth.shape:
        raise ValueError(
            f'pred_depth_map: expected the size of the truth, {tuple(depth.shape)}, got '
            f"{tuple(pred.shape)} for '{sample.get('img_path')}'; load the truth behind a Resize, "
            'and crop nothing'
        )
    region = eigen_region(depth.shape) if crop else (slice(None), slice(None))
    return pred[region], depth[region]
