"""FPN whose top-down path decodes by the backbone's soft clustering."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from mmseg.models.necks import FPN
from mmseg.registry import MODELS
from torch import Tensor

from ..upsamplers.top_down import GuidedTopDown
from .clustered_features import check_clustered


@MODELS.register_module()
class HCFPN(GuidedTopDown, FPN):
    """mmsegmentation's ``FPN`` that upsamples a level by the assignment of the finer one to it.

    Behind `HCResNet`. Steps that the backbone has no assignment for are upsampled as
    ``upsample_cfg`` says; with none at all it is the plain ``FPN``.

    Args:
        upsample_cfg: Config of the other steps' upsamplers. Default: nearest, as in ``FPN``.
        step_cfgs: Options of single steps that differ, see `GuidedTopDown`. Default: none.
        **kwargs: ``FPN``'s other arguments.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict; in ``forward``, features without
            assignments.
        ValueError: Unknown upsampler or step.
    """

    def __init__(self, *args: object, upsample_cfg: dict | None = None, **kwargs: object):
        upsample_cfg = dict(type='nearest') if upsample_cfg is None else upsample_cfg
        if isinstance(upsample_cfg, Mapping) and 'type' not in upsample_cfg:
            raise ValueError(f'upsample_cfg: expected a dict with a type, got {upsample_cfg!r}')
        super().__init__(*args, upsample_cfg=upsample_cfg, **kwargs)

    def _steps(self, inputs: Sequence[Tensor]) -> Iterable[Callable[[Tensor, Tensor], Tensor]]:
        """Decode where there is an assignment, else upsample."""
        check_clustered(inputs)

        def step(upsampler: Callable[[Tensor, Tensor], Tensor]) -> Callable:
            def decode(x: Tensor, guide: Tensor) -> Tensor:
                assignment = inputs.between(tuple(x.shape[2:]), tuple(guide.shape[2:]))
                return upsampler(x, guide) if assignment is None else assignment.decode(x)

            return decode

        return map(step, super()._steps(inputs))
