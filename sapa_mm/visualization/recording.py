"""Record what goes into and comes out of every upsampler of a model while it runs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import local_similarity
from ..ops.layout import accumulation_dtype
from ..ops.normalization import normalize
from ..ops.parents import parents
from ..upsamplers.inspection import describe_upsampler, find_upsamplers


@dataclass(frozen=True)
class UpsamplingStep:
    """One upsampling.

    Attributes:
        name: Name of the step, such as ``'c4_c3'``.
        upsampler: What upsampled, such as ``'SAPA (gated)'``.
        x: Decoder feature (N, C, H, W).
        guide: Encoder feature (N, Cy, Hg, Wg).
        output: Upsampled feature (N, C, Hg, Wg).
        kernels: (N, G, K*K, Hk, Wk), float32 or float64: the weight that every pixel gives to the
            window position p around its parent, positions row-major, for each of G groups of
            channels. (Hk, Wk) is the size that the operator upsampled to, (Hg, Wg) unless the
            result was cropped or resized to the guide. None if there is no such weight: the
            upsampler called `point_affiliation` and `assemble` not exactly once together, or
            K is 1.
    """

    name: str
    upsampler: str
    x: Tensor
    guide: Tensor
    output: Tensor
    kernels: Tensor | None = None

    @property
    def kernel_size(self) -> int | None:
        """K, or None without kernels."""
        return None if self.kernels is None else round(self.kernels.shape[2] ** 0.5)


@dataclass
class Recording:
    """What `record_upsampling` has seen.

    Attributes:
        steps: Name of a step to what it did first, in the order in which they ran.
        inputs: What the data preprocessor gave, (N, 3, height, width). None if it did not run.
    """

    steps: dict[str, UpsamplingStep] = field(default_factory=dict)
    inputs: Tensor | None = None


def select_upsamplers(model: nn.Module, steps: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Find the upsamplers of some steps.

    Args:
        model: As in `find_upsamplers`.
        steps: Names of steps. Default: all.

    Returns:
        Name of a step to its upsampler, in the order of the model.

    Raises:
        ValueError: The model has no upsamplers, or not those steps.
    """
    found = find_upsamplers(model)
    if not found:
        parts = ', '.join(type(part).__name__ for part in model.children())
        raise ValueError(
            'model: expected one with upsamplers, as GuidedSegformerHead and GuidedFPN have them, '
            f'got {type(model).__name__} of {parts}'
        )
    for step in steps or ():
        if step not in found:
            raise ValueError(f'steps: expected some of {", ".join(found)}, got {step!r}')
    return {name: found[name] for name in found if steps is None or name in steps}


@contextlib.contextmanager
def record_upsampling(model: nn.Module, steps: Sequence[str] | None = None) -> Iterator[Recording]:
    """Record every upsampling that the model does inside the context.

    The kernels are the weights that the operator itself used: its calls are observed, whatever the
    upsampler. Of a step that runs several times the first is kept; a segmentor that would slide a
    window over the image predicts it whole meanwhile.

    Args:
        model: A segmentor, a detector, or a part of one.
        steps: Names of the steps to record. Default: all.

    Yields:
        What has been recorded, filled while the model runs.

    Raises:
        ValueError: As `select_upsamplers`.
    """
    upsamplers = select_upsamplers(model, steps)
    recording = Recording()
    with contextlib.ExitStack() as stack:
        operators = stack.enter_context(_OperatorCalls())
        for name, upsampler in upsamplers.items():
            hook = _StepHook(name, recording, operators)
            stack.enter_context(upsampler.register_forward_pre_hook(hook.before))
            stack.enter_context(upsampler.register_forward_hook(hook.after, with_kwargs=True))
        preprocessor = getattr(model, 'data_preprocessor', None)
        if preprocessor is not None:

            def keep_inputs(module: nn.Module, args: tuple, out: object) -> None:
                if recording.inputs is None and isinstance(out, Mapping):
                    recording.inputs = out['inputs']

            stack.enter_context(preprocessor.register_forward_hook(keep_inputs))
        stack.enter_context(_whole_images(model))
        yield recording


@contextlib.contextmanager
def _whole_images(model: nn.Module) -> Iterator[None]:
    """Let a segmentor of mmseg predict whole images."""
    options = getattr(model, 'test_cfg', None)
    if not isinstance(options, Mapping) or 'mode' not in options:
        yield
        return
    before = options['mode']
    options['mode'] = 'whole'
    try:
        yield
    finally:
        options['mode'] = before


class _OperatorCalls(TorchDispatchMode):
    """Sees the calls to the operators that have kernels.

    Attributes:
        calls: The kernels of each call, to be computed; None while nobody listens.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[Callable[[], Tensor]] | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kernels_of = _KERNELS.get(func)
        if kernels_of is not None and self.calls is not None:
            self.calls.append(lambda: kernels_of(*args, **kwargs))
        return func(*args, **kwargs)


class _StepHook:
    """The hooks of one upsampler."""

    def __init__(self, name: str, recording: Recording, operators: _OperatorCalls):
        self.name = name
        self.recording = recording
        self.operators = operators

    def before(self, module: nn.Module, args: tuple) -> None:
        """Listen to the operators, the first time."""
        if self.name not in self.recording.steps:
            self.operators.calls = []

    def after(self, module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        """Keep what the upsampler got and gave."""
        calls, self.operators.calls = self.operators.calls, None
        if calls is None:
            return
        x, guide = _features(*args, **kwargs)
        with torch.no_grad():
            kernels = calls[0]() if len(calls) == 1 else None
        if kernels is not None and kernels.shape[2] == 1:
            kernels = None  # a gate, such as IndexNet's
        self.recording.steps[self.name] = UpsamplingStep(
            self.name, describe_upsampler(module), x.detach(), guide.detach(), out.detach(), kernels
        )


def _features(x: Tensor, guide: Tensor, *others: object, **more: object) -> tuple[Tensor, Tensor]:
    """Return both features of a call to an upsampler, by place or by name."""
    return x, guide


def _assembly_kernels(
    weights: Tensor, value: Tensor, kernel_size: int, groups: int = 1, backend: str = 'auto'
) -> Tensor:
    """Return the kernels (N, G, K*K, Hg, Wg) of a call to ``sapa_mm::assemble``."""
    return weights.to(accumulation_dtype(weights.dtype)).unflatten(1, (groups, -1))


def _affiliation_kernels(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    normalization: str,
    temperature: float,
    border: str,
    backend: str = 'auto',
) -> Tensor:
    """Compute the kernels (N, 1, K*K, Hg, Wg) of a call to ``sapa_mm::point_affiliation``."""
    # The operator rounds neither scores nor weights.
    query, key = (t.to(accumulation_dtype(t.dtype)) for t in (query, key))
    scores = local_similarity(query, key, kernel_size=kernel_size, temperature=temperature)
    scores = scores.unflatten(1, (kernel_size, kernel_size))
    (rows, row_inside), (columns, column_inside) = (
        _window(low, high, kernel_size, key.device)
        for low, high in zip(key.shape[2:], query.shape[2:], strict=True)
    )
    valid = None
    if border == 'replicate':
        # A position beyond the edge has the score of the edge, which is in the window as well.
        scores = scores.gather(1, rows[:, None, :, None].expand_as(scores))
        scores = scores.gather(2, columns[:, None, :].expand_as(scores))
    elif border == 'mask':
        valid = row_inside[:, None, :, None] & column_inside[:, None, :]
        valid = valid.permute(2, 3, 0, 1)
    weights = normalize(scores.permute(0, 3, 4, 1, 2).contiguous(), normalization, valid)
    return weights.flatten(3).permute(0, 3, 1, 2)[:, None]


def _window(low: int, high: int, kernel_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Place the windows of ``high`` pixels along an axis of ``low``.

    Returns:
        (K, high) twice: the place in the window of the position nearest to each one inside the
        axis, and whether it is inside itself.
    """
    parent = parents(high, low, device)
    position = parent + torch.arange(kernel_size, device=device)[:, None] - kernel_size // 2
    nearest = position.clamp(0, low - 1)
    return nearest - parent + kernel_size // 2, nearest == position


_KERNELS = {
    torch.ops.sapa_mm.point_affiliation.default: _affiliation_kernels,
    torch.ops.sapa_mm.assemble.default: _assembly_kernels,
}
