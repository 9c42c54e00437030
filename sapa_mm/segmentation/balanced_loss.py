"""Cross-entropy that balances classes, as SegNet is trained by it."""

from collections.abc import Sequence

from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_positive
from ..ops.layout import accumulation_dtype


@MODELS.register_module()
class BalancedCrossEntropyLoss(nn.Module):
    r"""Cross-entropy with a weight for each class, averaged over the pixels with a label.

    With the weight :math:`w_c` of class c and the labels :math:`y_i` of the pixels that are not
    ignored:

    .. math::
        - \sum_i w_{y_i} \log p_i(y_i) \,/\, \sum_i w_{y_i}

    SegNet's weights are the median of the classes' frequencies in the images where they occur,
    divided by their own frequency. mmseg's ``CrossEntropyLoss`` fails if it has class weights and a
    pixel is ignored.

    Args:
        class_weight: Weights of the classes, positive.
        loss_weight: Factor of the loss.
        loss_name: Name of the loss in the log; with the prefix ``'loss_'`` it is optimized.

    Raises:
        TypeError: A weight that is no number.
        ValueError: A weight that is not finite and positive.
    """

    def __init__(
        self,
        class_weight: Sequence[float],
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ce',
    ):
        for weight in class_weight:
            check_positive('class_weight', weight)
        check_positive('loss_weight', loss_weight)
        super().__init__()
        self.class_weight = tuple(class_weight)
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self, logits: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255
    ) -> Tensor:
        """Compute the loss.

        Args:
            logits: (N, C, H, W).
            label: Classes (N, H, W), int64.
            weight: Factors of the pixels' losses (N, H, W). Default: 1.
            ignore_index: Label of the pixels that are ignored.

        Returns:
            The loss, a scalar; 0 if all pixels are ignored.

        Raises:
            ValueError: Another number of classes than weights.
        """
        if logits.shape[1] != len(self.class_weight):
            raise ValueError(
                f'class_weight: expected {logits.shape[1]} weights, one a class, got '
                f'{len(self.class_weight)}'
            )
        logits = logits.to(accumulation_dtype(logits.dtype))
        class_weight = logits.new_tensor(self.class_weight)
        losses = F.cross_entropy(
            logits, label, class_weight, ignore_index=ignore_index, reduction='none'
        )
        used = label != ignore_index
        total = (class_weight[label.where(used, 0)] * used).sum()
        if weight is not None:
            losses = losses * weight
        return self.loss_weight * losses.sum() / total.clamp_min(1e-12)
