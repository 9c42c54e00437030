"""FPN whose top-down path decodes by the backbone's soft clustering."""

from mmseg.models.necks import FPN
from mmseg.registry import MODELS
from torch import Tensor

from ..upsamplers import build_steps
from ..upsamplers.top_down import GuidedTopDown, level_steps
from .clustered_features import ClusteredFeatures, check_clustered, check_levels


@MODELS.register_module()
class HCFPN(GuidedTopDown, FPN):
    """mmsegmentation's ``FPN`` that upsamples a level by the assignment of the finer one to it.

    It stands right behind `HCResNet`. Steps that the backbone has no assignment for are upsampled
    as ``upsample_cfg`` says; with none at all it is the plain ``FPN``. An assignment that no step
    has a use for, that of a fourth level, gets no gradient, which several GPUs have to be told by
    ``find_unused_parameters=True``.

    Args:
        levels: The backbone's ``levels``: the steps that they decode then have no upsampler, whose
            parameters would not be used. Default: every step has one.
        upsample_cfg: Config of the other steps' upsamplers. Default: nearest, as in ``FPN``.
        step_cfgs: Options of single steps that differ, see `GuidedNeck`. Default: none.
        **kwargs: ``FPN``'s other arguments.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict, ``levels`` no int; in ``forward``,
            features without assignments.
        ValueError: Unknown upsampler or step, or ``levels`` not from 0 to 4; in ``forward``, fewer
            assignments than ``levels``.
    """

    def __init__(
        self,
        *args: object,
        upsample_cfg: dict | None = None,
        step_cfgs: dict | None = None,
        levels: int | None = None,
        **kwargs: object,
    ):
        if levels is not None:
            check_levels(levels)
        super().__init__(*args, **kwargs)
        self.upsamplers = build_steps(
            dict(type='nearest') if upsample_cfg is None else upsample_cfg,
            step_cfgs,
            self.steps(),
            skip=level_steps(self.num_ins, self.num_ins - (levels or 0), self.out_channels),
        )

    def forward(self, inputs: ClusteredFeatures) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: What `HCResNet` gives.

        Returns:
            ``num_outs`` features (N, out_channels, H_i, W_i), fine to coarse.

        Raises:
            TypeError: Features without assignments.
            ValueError: Another number of features than ``in_channels`` has, or fewer assignments
                than ``levels``.
        """
        check_clustered(inputs)
        return super().forward(inputs)

    def upsample(self, name: str, x: Tensor, guide: Tensor, inputs: ClusteredFeatures) -> Tensor:
        """Decode where there is an assignment, else upsample."""
        assignment = inputs.between(tuple(x.shape[2:]), tuple(guide.shape[2:]))
        if assignment is not None:
            return assignment.decode(x)
        if name not in self.upsamplers:
            raise ValueError(
                f'levels: expected the number of assignments, {len(inputs.assignments)}, '
                f'or fewer, as the step {name} has none'
            )
        return super().upsample(name, x, guide, inputs)
