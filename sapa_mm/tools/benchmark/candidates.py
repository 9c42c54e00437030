"""The ways of upsampling that are compared."""

import contextlib
import copy
import importlib
import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import ops
from ...ops import reference
from .flex import flex_affiliation
from .rows import PASSES
from .shapes import Shape

OURS, BILINEAR = 'sapa_mm', 'bilinear'
# `similarity` of the modules, by their names in the paper.
SAPA_FORMS = {'SAPA-I': 'inner', 'SAPA-B': 'bilinear', 'SAPA-G': 'gated'}
COMPILE_MODES = {'default': None, 'max-autotune': 'max-autotune-no-cudagraphs'}


@dataclass(frozen=True)
class Candidate:
    """A `Candidate` is one way to upsample.

    Attributes:
        name: What the results call it.
        function: Takes the inputs, returns (N, C, Hg, Wg). Default: none, where it cannot run.
        inputs: Names of the inputs, as in `Shape.sizes`.
        exact: The same in float64, slow: takes the indices of the value's channels that are
            wanted, then the inputs. Default: none, the candidate is not checked.
        parameters: What it differentiates besides its inputs.
        backward_reads: Whether its gradients depend on its inputs.
        context: What forward and backward run in.
        reason: Why it cannot run. Default: it can.
    """

    name: str
    function: Callable[..., Tensor] | None = None
    inputs: tuple[str, ...] = ('query', 'key', 'value')
    exact: Callable[..., Tensor] | None = None
    parameters: tuple[Tensor, ...] = ()
    backward_reads: bool = True
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    reason: str | None = None

    def run(self, tensors: dict[str, Tensor], grad: Tensor | None) -> list[Tensor]:
        """Make one call, forward or (with ``grad``) forward and backward.

        Args:
            tensors: Tensors by name; those that are not its inputs are ignored.
            grad: Gradient of the output (N, C, Hg, Wg).

        Returns:
            The output; with ``grad`` also the gradients of inputs and parameters.
        """
        assert self.function is not None, self.reason
        inputs = [tensors[name] for name in self.inputs]
        with self.context():
            if grad is None:
                with torch.no_grad():
                    return [self.function(*inputs)]
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = self.function(*leaves)
            return [out.detach(), *torch.autograd.grad(out, [*leaves, *self.parameters], grad)]

    def least_bytes(self, shape: Shape, itemsize: int, label: str) -> int:
        """Return the fewest bytes that a call can move, over which bandwidth is given.

        Args:
            shape: The sizes.
            itemsize: Bytes of an element.
            label: One of `PASSES`.
        """
        sizes = shape.sizes()
        inputs, out = sum(math.prod(sizes[name]) for name in self.inputs), math.prod(sizes['out'])
        elements = inputs + out
        if label != PASSES[0]:
            elements += out + inputs * (2 if self.backward_reads else 1)
        return elements * itemsize


def unfold_einsum(query: Tensor, key: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """Compute the usual formula: K*K copies of key and value, and two einsums.

    Only integer ratios are possible.
    """
    (n, d, high_h, high_w), (_, c, h, w) = query.shape, value.shape
    window, padding = kernel_size**2, kernel_size // 2
    keys = F.unfold(key, kernel_size, padding=padding).view(n, d, window, h, w)
    cells = query.reshape(n, d, h, high_h // h, w, high_w // w)
    weights = torch.einsum('ndhawb,ndphw->nphawb', cells, keys).softmax(1)
    values = F.unfold(value, kernel_size, padding=padding).view(n, c, window, h, w)
    out = torch.einsum('nphawb,ncphw->nchawb', weights, values)
    return out.reshape(n, c, high_h, high_w)


def interpolate(value: Tensor, ratio: int) -> Tensor:
    """Upsample the value by bilinear interpolation."""
    size = [ratio * length for length in value.shape[2:]]
    return F.interpolate(value, size, mode='bilinear', align_corners=False)


def exact_affiliation(
    channels: Tensor, query: Tensor, key: Tensor, value: Tensor, *, kernel_size: int
) -> Tensor:
    """Compute these channels of point affiliation by the reference."""
    return reference.point_affiliation(query, key, value[:, channels], kernel_size=kernel_size)


def exact_assembly(channels: Tensor, value: Tensor, weights: Tensor, *, kernel_size: int) -> Tensor:
    """Compute these channels of the assembly by the reference."""
    return reference.assemble(weights, value[:, channels], kernel_size=kernel_size)


def exact_embedding(module: Any, value: Tensor, guide: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Compute the query and the key of SAPA-I, -B or -G by the layers' own definitions.

    Args:
        module: The upsampler, a `SAPA`.
        value: x, (N, C, H, W).
        guide: (N, C, ratio * H, ratio * W).
        ratio: Output pixels per cell and axis.
    """

    def to_pixels(x: Tensor) -> Tensor:
        return x.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2)

    key = normalized = module.norm_x(value.movedim(1, -1))
    query = module.norm_guide(guide.movedim(1, -1))
    if module.similarity != 'inner':
        key, query = module.key_proj(normalized), module.query_proj(query)
    if module.similarity == 'gated':
        gate = torch.sigmoid(module.gate_proj(normalized))
        rest = (1 - gate) * module.self_proj(normalized)
        query = to_pixels(gate) * query + to_pixels(rest)
    return query.movedim(-1, 1), key.movedim(-1, 1)


def mmcv_carafe(shape: Shape) -> Callable[..., Tensor]:
    """Make a function of value and weights of the assembly of mmcv's CARAFE.

    Its kernels take every map for contiguous.

    Raises:
        ImportError: No mmcv, or one that is built without its operators.
    """
    carafe = importlib.import_module('mmcv.ops').carafe

    def assemble(value: Tensor, weights: Tensor) -> Tensor:
        maps = value.contiguous(), weights.contiguous()
        return carafe(*maps, shape.kernel_size, 1, shape.ratio)

    return assemble


def sapa_module(
    shape: Shape, device: torch.device, dtype: torch.dtype, similarity: str
) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    """Make SAPA as a network has it, norms and projections included, and its `Candidate.exact`.

    The projections are drawn so that scores are of order 1; SAPA-I, which has none, divides them.

    Args:
        shape: The sizes.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        similarity: As `SAPA` takes it.

    Raises:
        ImportError: mmengine is installed, but cannot be imported.
    """
    upsamplers = importlib.import_module('sapa_mm.upsamplers')
    temperature = shape.channels**0.5 if similarity == 'inner' else 1.0
    module = upsamplers.SAPA(
        shape.channels,
        similarity=similarity,
        embed_dims=shape.embed,
        kernel_size=shape.kernel_size,
        temperature=temperature,
    )
    std = (shape.channels * shape.embed**0.5) ** -0.5
    for layer in module.children():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=std)
    module = module.to(device, dtype)
    double = copy.deepcopy(module).double().requires_grad_(False)
    affiliation = partial(exact_affiliation, kernel_size=shape.kernel_size)

    def exact(channels: Tensor, value: Tensor, guide: Tensor) -> Tensor:
        query, key = exact_embedding(double, value, guide, shape.ratio)
        return affiliation(channels, query / temperature, key, value)

    return module, exact


def dysample_module(
    shape: Shape, device: torch.device, dtype: torch.dtype
) -> tuple[torch.nn.Module, Callable[..., Tensor], Callable[..., Tensor]]:
    """Make DySample as a network has it, how it is called, and its `Candidate.exact`.

    Raises:
        ImportError: mmengine is installed, but cannot be imported.
    """
    upsamplers = importlib.import_module('sapa_mm.upsamplers')
    module = upsamplers.DySample(shape.channels, 1, scale_factor=shape.ratio)
    # Every position is a tenth of a pixel off: on a pixel's centre the gradient jumps.
    torch.nn.init.constant_(module.offset.bias, 0.4)
    module = module.to(device, dtype)
    double = copy.deepcopy(module).double().requires_grad_(False)

    def call(upsampler: torch.nn.Module, value: Tensor) -> Tensor:
        # The guide gives the size alone.
        size = [shape.ratio * length for length in value.shape[2:]]
        return upsampler(value, value.new_zeros(()).expand(len(value), 1, *size))

    def exact(channels: Tensor, value: Tensor) -> Tensor:
        return call(double, value)[:, channels]

    return module, partial(call, module), exact


def fade_module(
    shape: Shape, device: torch.device, dtype: torch.dtype
) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    """Make FADE as a network has it, and its `Candidate.exact`.

    The encoder convolution is drawn so that its results are of order 1.

    Raises:
        ImportError: mmengine is installed, but cannot be imported.
    """
    upsamplers = importlib.import_module('sapa_mm.upsamplers')
    module = upsamplers.FADE(shape.channels, kernel_size=shape.kernel_size)
    torch.nn.init.normal_(module.content_encoder.weight, std=0.03)
    module = module.to(device, dtype)
    double = copy.deepcopy(module).double().requires_grad_(False)

    def exact(channels: Tensor, value: Tensor, guide: Tensor) -> Tensor:
        weights = double.predict_kernels(value, guide)
        upsampled = exact_assembly(channels, value, weights, kernel_size=shape.kernel_size)
        return double.mix(value, guide[:, channels], upsampled)

    return module, exact


def reason_of(error: BaseException) -> str:
    """Say why something could not run, in a few words on one line: the error behind the errors."""
    while error.__cause__:
        error = error.__cause__
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in text:
        return 'out of memory'
    line = next((line for line in text.splitlines() if line.strip()), '')
    return textwrap.shorten(f'{type(error).__name__}: {line}'.replace('|', '/'), 160)


def attempt(name: str, make: Callable[[], Candidate], reason: str | None = None) -> Candidate:
    """Make a candidate that may be impossible here.

    Args:
        name: Its name.
        make: Makes it, or raises.
        reason: Why it is not even tried. Default: it is.
    """
    if reason:
        return Candidate(name, reason=reason)
    try:
        return make()
    except Exception as error:  # whatever it is: no rival ends the benchmark
        return Candidate(name, reason=reason_of(error))


def option_name(name: str) -> str:
    """Return what ``--candidates`` calls a candidate."""
    return name.lower().replace(' ', '-')


# All that there are, in the order of the table.
NAMES = (
    OURS,
    f'{OURS} torch',
    'unfold+einsum',
    'compiled unfold',
    'flex_attention',
    'mmcv CARAFE',
    BILINEAR,
    *(f'{name} module' for name in SAPA_FORMS),
    'DySample module',
    'FADE module',
)
COMPILED = ('compiled unfold', 'flex_attention')
# What takes little longer than the operator.
FAST = (
    OURS,
    'mmcv CARAFE',
    BILINEAR,
    *(f'{name} module' for name in SAPA_FORMS),
    'DySample module',
)


def default_names(preset: str | None) -> tuple[str, ...]:
    """Return the names of the candidates that are compared unless others are asked for.

    Args:
        preset: The shapes, one of `PRESETS`; None for a shape of one's own.
    """
    if preset == 'gpu':
        return FAST
    return tuple(name for name in NAMES if name not in ('SAPA-I module', 'SAPA-G module'))


def candidates(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    compilation: str,
    names: Sequence[str] = (),
) -> list[Candidate]:
    """Return what is compared.

    Args:
        shape: The sizes.
        device: Device of the tensors.
        dtype: Dtype of the tensors.
        compilation: Name in `COMPILE_MODES`, or ``'off'`` to leave out what has to be compiled.
        names: Which of `NAMES`. Default: those of `default_names`.

    Returns:
        A candidate for each name, in the order of `NAMES`; on a CPU, where the kernels do not run,
        none for the operator on torch's backend.
    """
    k, on_gpu = shape.kernel_size, device.type == 'cuda'
    ours = partial(ops.point_affiliation, kernel_size=k)
    unfold = partial(unfold_einsum, kernel_size=k)
    exact = partial(exact_affiliation, kernel_size=k)
    mode = COMPILE_MODES.get(compilation)
    compiler = partial(torch.compile, dynamic=False, fullgraph=True, mode=mode)
    off = 'only with --compile' if compilation == 'off' else None

    def forced() -> Candidate:
        context = partial(ops.backend, 'torch')
        return Candidate(f'{OURS} torch', ours, exact=exact, context=context)

    def compiled_unfold() -> Candidate:
        return Candidate('compiled unfold', compiler(unfold), exact=exact)

    def flex_attention() -> Candidate:
        return Candidate('flex_attention', flex_affiliation(shape, device, compiler), exact=exact)

    def carafe() -> Candidate:
        assembly = partial(exact_assembly, kernel_size=k)
        return Candidate('mmcv CARAFE', mmcv_carafe(shape), ('value', 'weights'), assembly)

    def bilinear() -> Candidate:
        function = partial(interpolate, ratio=shape.ratio)
        return Candidate(BILINEAR, function, ('value',), backward_reads=False)

    def sapa(name: str) -> Candidate:
        module, exact = sapa_module(shape, device, dtype, SAPA_FORMS[name])
        parameters = tuple(module.parameters())
        return Candidate(f'{name} module', module, ('value', 'guide'), exact, parameters)

    def dysample() -> Candidate:
        module, call, exact = dysample_module(shape, device, dtype)
        return Candidate('DySample module', call, ('value',), exact, tuple(module.parameters()))

    def fade() -> Candidate:
        module, exact = fade_module(shape, device, dtype)
        parameters = tuple(module.parameters())
        return Candidate('FADE module', module, ('value', 'guide'), exact, parameters)

    makers: dict[str, Callable[[], Candidate]] = {
        OURS: lambda: Candidate(OURS, ours, exact=exact),
        f'{OURS} torch': forced,
        'unfold+einsum': lambda: Candidate('unfold+einsum', unfold, exact=exact),
        'compiled unfold': compiled_unfold,
        'flex_attention': flex_attention,
        'mmcv CARAFE': carafe,
        BILINEAR: bilinear,
        **{f'{name} module': partial(sapa, name) for name in SAPA_FORMS},
        'DySample module': dysample,
        'FADE module': fade,
    }
    reasons = dict.fromkeys(COMPILED, off)
    if not on_gpu:
        del makers[f'{OURS} torch']
        reasons['mmcv CARAFE'] = 'mmcv has it for GPUs only'
    wanted = names or default_names(None)
    return [attempt(n, make, reasons.get(n)) for n, make in makers.items() if n in wanted]
