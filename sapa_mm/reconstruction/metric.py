"""PSNR, SSIM, RMSE and MAE."""

import math
from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..frameworks import require


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """Measure how well images in [0, 1] are reconstructed.

    - ``RMSE``: the square root of the mean squared error over all pixels of all images.
    - ``PSNR``: -20 log10(RMSE), in dB; not the mean of the images' own PSNR, which is larger.
    - ``MAE``: the mean absolute error over all pixels of all images.
    - ``SSIM``: the mean of the images' structural similarity (Wang et al., 2004: Gaussian window of
      sigma 1.5), by scikit-image, with a data range of 1.

    Args:
        collect_device: Where the results of several processes are gathered, ``'cpu'`` or
            ``'gpu'``. Default: ``'cpu'``.
        prefix: Put before the names as in ``'prefix/PSNR'``. Default: None.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: If prediction and target differ in size.
    """

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)
        with require('scikit-image', type(self).__name__, '"scikit-image>=0.22"'):
            from skimage.metrics import structural_similarity
        self._ssim = structural_similarity

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add the errors of one batch.

        Args:
            data_batch: Not used.
            data_samples: One dict an image with ``pred`` and ``target``, (C, H, W), at least 11
                pixels high and wide.
        """
        for sample in data_samples:
            pred, target = (sample[key].cpu().float().numpy() for key in ('pred', 'target'))
            if pred.shape != target.shape:
                raise ValueError(
                    'data_samples: expected prediction and target of one size, got '
                    f'{pred.shape} and {target.shape}'
                )
            error = pred.astype(np.float64) - target
            ssim = self._ssim(
                pred,
                target,
                channel_axis=0,
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            # One entry an image lets mmengine drop what a distributed sampler adds at the end.
            self.results.append((error.size, (error**2).sum(), np.abs(error).sum(), float(ssim)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over all images.

        Args:
            results: For each image the number of values, the sums of squared and absolute errors,
                and the SSIM.

        Returns:
            ``PSNR`` in dB (infinite where there is no error), ``SSIM``, ``RMSE`` and ``MAE``.
        """
        size, squared, absolute, ssim = np.sum(results, axis=0)
        rmse = math.sqrt(squared / size)
        return {
            'PSNR': -20 * math.log10(rmse) if rmse else math.inf,
            'SSIM': float(ssim / len(results)),
            'RMSE': rmse,
            'MAE': float(absolute / size),
        }
