"""The scale-invariant logarithmic loss of Eigen et al. (2014) in the form of BTS."""

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..ops.checks import check_positive
from ..ops.layout import accumulation_dtype


@MODELS.register_module()
class ScaleInvariantLogLoss(nn.Module):
    r"""The scale-invariant error of logarithmic depth, over all known pixels of a batch.

    .. math::
        L = s \sqrt{\overline{e^2} - \lambda\, \bar{e}^2},\quad e = \ln d - \ln d^*

    It is computed in float32, or float64 if the prediction is. A batch without a known pixel gives
    0, and so does a perfect prediction, both with a gradient of 0.

    Args:
        variance_focus: :math:`\lambda`: 0 is the RMS error of logarithms, 1 ignores the scale.
            Default: BTS's.
        scale: s. Default: BTS's.
        min_depth: Depth, in metres, must be larger than this to be known. Default: BTS's for NYU.
        eps: Below this the logarithm of a prediction goes on as its tangent, in metres, so that it
            is finite at 0 and has a gradient.
        loss_weight: Factor of the loss.
        loss_name: Name in the log.

    Raises:
        TypeError: A number that is none.
        ValueError: A number that is not positive, or ``variance_focus`` outside of [0, 1].
    """

    def __init__(
        self,
        variance_focus: float = 0.85,
        scale: float = 10.0,
        min_depth: float = 0.1,
        eps: float = 1e-3,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_silog',
    ):
        super().__init__()
        if isinstance(variance_focus, bool) or not isinstance(variance_focus, int | float):
            raise TypeError(f'variance_focus: expected a number, got {variance_focus!r}')
        if not 0 <= variance_focus <= 1:
            raise ValueError(f'variance_focus: expected 0 to 1, got {variance_focus}')
        for name, value in (
            ('scale', scale),
            ('min_depth', min_depth),
            ('eps', eps),
            ('loss_weight', loss_weight),
        ):
            check_positive(name, value)
        self.variance_focus = variance_focus
        self.scale = scale
        self.min_depth = min_depth
        self.eps = eps
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(self, output: Tensor, depth: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            output: Predicted depth (N, 1, H, W), in metres.
            depth: True depth (N, 1, H, W), in metres; what is not above ``min_depth``, infinite or
                NaN is unknown.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: Two shapes.
        """
        if output.shape != depth.shape:
            raise ValueError(
                f'output: expected the shape of depth, {tuple(depth.shape)}, got '
                f'{tuple(output.shape)}'
            )
        with torch.autocast(output.device.type, enabled=False):
            output = output.to(accumulation_dtype(output.dtype))
            known = (depth > self.min_depth) & depth.isfinite()
            count = known.sum().clamp(min=1)
            # What is unknown becomes equal on both sides, without a gradient.
            true = torch.where(known, depth, 1.0).to(output.dtype)
            pred = torch.where(known, output, 1.0)
            low = (pred - self.eps).clamp(max=0) / self.eps
            error = pred.clamp(min=self.eps).log() + low - true.log()
            mean = error.sum() / count
            # Written as a sum of squares it cannot become negative by rounding.
            variance = torch.where(known, error - mean, 0.0).square().sum() / count
            square = variance + (1 - self.variance_focus) * mean.square()
            # The square root's gradient at 0 is infinite.
            positive = square > 0
            root = torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0 * square)
            return self.loss_weight * self.scale * root
