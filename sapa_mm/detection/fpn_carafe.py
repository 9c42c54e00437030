"""What mmdetection's FPN_CARAFE becomes: a host of its kind, and its weights in another host."""

from collections.abc import Sequence

from mmdet.models.necks import FPN_CARAFE
from mmdet.registry import MODELS
from torch import Tensor

from ..upsamplers import CARAFE, build_steps
from ..upsamplers.top_down import TopDownPath, level_steps


class LoadsFPNCarafe:
    """Mix-in for a host of a top-down path: it loads the upsamplers of an ``FPN_CARAFE``.

    That one numbers them from the finest step, ``upsample_modules.0``; here they have the names of
    the steps. They are renamed where the step has a `CARAFE`; what the host has no step for stays
    unexpected.
    """

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        steps = reversed(self.steps()) if self.upsamplers is not None else ()
        for i, step in enumerate(steps):
            if not isinstance(self.upsamplers[step], CARAFE):
                continue
            theirs, ours = f'{prefix}upsample_modules.{i}.', f'{prefix}upsamplers.{step}.'
            for key in [key for key in state_dict if key.startswith(theirs)]:
                state_dict[ours + key.removeprefix(theirs)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


@MODELS.register_module()
class GuidedFPN_CARAFE(LoadsFPNCarafe, TopDownPath, FPN_CARAFE):
    """mmdetection's ``FPN_CARAFE`` with any upsampler: the FPN of its published CARAFE detectors.

    It differs from an FPN where ``num_outs`` asks for levels above the backbone's: these come of
    the last feature by convolutions of stride 2 and begin the top-down path, in which ``FPN`` has
    no part for them. Four features and five outputs make the steps ``'c5_c4'``, ``'c4_c3'``,
    ``'c3_c2'`` and ``'c2_c1'``, each with an upsampler of its own in ``upsamplers``.

    With ``type='CARAFE'`` it loads and computes what ``FPN_CARAFE`` does, on CPUs as well. Where a
    feature is larger than twice the next one, there is no rule in ``FPN_CARAFE`` (an assertion
    fails), and where it is smaller than twice minus one, that crops; here both are interpolated.

    Args:
        *args: ``FPN_CARAFE``'s arguments.
        upsample_cfg: Config of the upsamplers, with a ``type``.
        step_cfgs: Name of a step, to the options that differ there. Default: none.
        **kwargs: ``FPN_CARAFE``'s other arguments.

    Raises:
        TypeError: ``upsample_cfg`` or ``step_cfgs`` is no dict.
        ValueError: Unknown upsampler or step.
    """

    replaces = 'FPN_CARAFE'

    def __init__(
        self,
        *args: object,
        upsample_cfg: dict | None = None,
        step_cfgs: dict | None = None,
        **kwargs: object,
    ):
        super().__init__(*args, upsample_cfg=dict(type='nearest'), **kwargs)
        # The second is a string there, in the place of the path's method.
        del self.upsample_modules, self.upsample
        self.upsamplers = build_steps(upsample_cfg, step_cfgs, self.steps())

    def steps(self) -> dict[str, tuple[int, int]]:
        """Return the steps from the coarsest level, the extra ones included, to the finest."""
        coarsest = self.start_level + len(self.lateral_convs)
        return level_steps(coarsest, self.start_level + 1, self.out_channels)

    def init_weights(self) -> None:
        """Initialize the neck, and the upsamplers, whose convolutions are not to be like its."""
        upsamplers, self.upsamplers = self.upsamplers, None
        super().init_weights()
        self.upsamplers = upsamplers
        upsamplers.init_weights()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: The backbone's features (N, C_i, H_i, W_i), fine to coarse.

        Returns:
            ``num_outs`` features (N, out_channels, H_i, W_i), fine to coarse.

        Raises:
            ValueError: Another number of features than ``in_channels`` has.
        """
        if len(inputs) != self.num_ins:
            raise ValueError(f'inputs: expected {self.num_ins} features, got {len(inputs)}')
        used = inputs[self.start_level : self.backbone_end_level]
        laterals: list[Tensor] = []
        for i, conv in enumerate(self.lateral_convs):
            # The first extra level has the last feature, every other one the level below it.
            source = used[i] if i < len(used) else inputs[-1] if i == len(used) else laterals[-1]
            laterals.append(conv(source))
        merged = self.merge_top_down(laterals, inputs)
        return tuple(conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True))
