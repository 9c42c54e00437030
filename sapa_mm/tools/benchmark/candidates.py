"""What `benchmark.py` compares, and how it checks it."""

import contextlib
import copy
import importlib
import math
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sapa_mm import ops
from sapa_mm.ops import reference

OURS, BILINEAR = 'sapa_mm', 'bilinear'
COMPILE_MODES = {'default': None, 'max-autotune': 'max-autotune-no-cudagraphs'}
PASSES = ('forward', 'forward+backward')
HIGH_RESOLUTION = ('query', 'guide', 'weights')
# Queries and keys are put in the order of tiles of cells, so that a block of FLEX_BLOCK queries
# (at ratio 2 one tile) meets few blocks of keys.
FLEX_BLOCK = 128
QUERY_TILE, KEY_TILE = (4, 8), (8, 16)
# What is checked: this many first and last channels, of the first and the last image.
CHECKED_CHANNELS = 8
REFERENCE_PIXELS = 2**15  # that the reference computes at a time


@dataclass(frozen=True)
class Shape:
    """Sizes of one upsampling step.

    Args:
        name: Shown in the results.
        batch: N.
        height: H of the value.
        width: W of the value.
        channels: C of the value.
        embed: D of query and key.
        ratio: Output pixels per cell and axis.
        kernel_size: K.
        steps: Names of the steps of a network that have these sizes. Default: none.
    """

    name: str
    batch: int
    height: int
    width: int
    channels: int = 256
    embed: int = 32
    ratio: int = 2
    kernel_size: int = 5
    steps: tuple[str, ...] = ()

    def sizes(self) -> dict[str, tuple[int, int, int, int]]:
        """Shape of every tensor that some candidate takes, and of the result (``'out'``)."""
        n, c, d = self.batch, self.channels, self.embed
        low = self.height, self.width
        high = self.height * self.ratio, self.width * self.ratio
        return {
            'query': (n, d, *high),
            'key': (n, d, *low),
            'value': (n, c, *low),
            'guide': (n, c, *high),
            'weights': (n, self.kernel_size**2, *high),
            'out': (n, c, *high),
        }

    def __str__(self) -> str:
        sizes = self.sizes()
        tensors = ', '.join(f'{name} {sizes[name]}' for name in ('query', 'key', 'value'))
        steps = f' ({", ".join(self.steps)})' if self.steps else ''
        return f'{self.name}{steps}: {tensors}, K {self.kernel_size}'


@dataclass(frozen=True)
class Candidate:
    """One way to upsample.

    Args:
        name: Shown in the results.
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
    context: Callable[[], AbstractContextManager] = contextlib.nullcontext
    reason: str | None = None

    def run(self, tensors: dict[str, Tensor], grad: Tensor | None) -> list[Tensor]:
        """One call, forward or (with ``grad``) forward and backward.

        Args:
            tensors: By name; those that are not its inputs are ignored.
            grad: Gradient of the output (N, C, Hg, Wg).

        Returns:
            The output; with ``grad`` also the gradients of inputs and parameters.
        """
        inputs = [tensors[name] for name in self.inputs]
        with self.context():
            if grad is None:
                with torch.no_grad():
                    return [self.function(*inputs)]
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = self.function(*leaves)
            return [out.detach(), *torch.autograd.grad(out, [*leaves, *self.parameters], grad)]

    def least_bytes(self, shape: Shape, itemsize: int, label: str) -> int:
        """Fewest bytes that a call can move: what `benchmark.py` says of bandwidth.

        Args:
            shape: The sizes.
            itemsize: Bytes of an element.
            label: One of `PASSES`.
        """
        sizes = shape.sizes()
        inputs, out = sum(math.prod(sizes[name]) for name in self.inputs), math.prod(sizes['out'])
        elements = inputs + out
        if label != 'forward':
            elements += out + inputs * (2 if self.backward_reads else 1)
        return elements * itemsize


def unfold_einsum(query: Tensor, key: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """The usual formula: K*K copies of key and value, and two einsums. Integer ratios only."""
    (n, d, high_h, high_w), (_, c, h, w) = query.shape, value.shape
    window, padding = kernel_size**2, kernel_size // 2
    keys = F.unfold(key, kernel_size, padding=padding).view(n, d, window, h, w)
    cells = query.reshape(n, d, h, high_h // h, w, high_w // w)
    weights = torch.einsum('ndhawb,ndphw->nphawb', cells, keys).softmax(1)
    values = F.unfold(value, kernel_size, padding=padding).view(n, c, window, h, w)
    out = torch.einsum('nphawb,ncphw->nchawb', weights, values)
    return out.reshape(n, c, high_h, high_w)


def to_tiles(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """Put the pixels of (N, C, H, W) in the order of whole tiles: (N, 1, H*W, C)."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // tile[0], tile[0], w // tile[1], tile[1])
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, 1, h * w, c)


def from_tiles(x: Tensor, tile: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Undo `to_tiles`: (N, 1, H*W, C) to (N, C, H, W) of this size, channels last."""
    n, _, _, c = x.shape
    x = x.reshape(n, size[0] // tile[0], size[1] // tile[1], *tile, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, *size, c).permute(0, 3, 1, 2)


def flex_affiliation(
    shape: Shape, device: torch.device, compiler: Callable[[Callable], Callable]
) -> Callable[..., Tensor]:
    """Point affiliation by flex_attention: keys outside a pixel's window are masked.

    The window positions outside the image, which take part with score and value 0, are zeros
    around the two low-resolution maps. The mask is made here, once: no call pays for it.

    Args:
        shape: The sizes.
        device: Of the tensors.
        compiler: What compiles the three parts: into tiles, attention, and back. (Compiled in one,
            they fail on a CPU: torch's template for it wants no views. No kernel spans two parts.)

    Returns:
        Function of query, key and value.

    Raises:
        ImportError: This version of torch has no flex_attention.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    h, w, s, k = shape.height, shape.width, shape.ratio, shape.kernel_size

    def whole(length: int, tile: int) -> int:
        return -(-length // tile) * tile

    cells_h, cells_w = whole(h, QUERY_TILE[0]), whole(w, QUERY_TILE[1])
    query_tile, high = (QUERY_TILE[0] * s, QUERY_TILE[1] * s), (cells_h * s, cells_w * s)
    low = whole(cells_h + k - 1, KEY_TILE[0]), whole(cells_w + k - 1, KEY_TILE[1])

    def positions(size: tuple[int, int], tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
        axes = [torch.arange(length, device=device, dtype=torch.int32) for length in size]
        grid = torch.stack(torch.meshgrid(*axes, indexing='ij'))
        return to_tiles(grid[None], tile)[0, 0].T.contiguous().unbind()

    # Rows and columns, by index: where a query's window begins, and where a key lies.
    query_y, query_x = (x // s for x in positions(high, query_tile))
    key_y, key_x = positions(low, KEY_TILE)

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        y, x = key_y[key] - query_y[query], key_x[key] - query_x[query]
        return (y >= 0) & (y < k) & (x >= 0) & (x < k)

    key_index = torch.empty(low, dtype=torch.int64, device=device)
    key_index[key_y, key_x] = torch.arange(len(key_y), device=device)
    offset = torch.arange(k, device=device)
    windows = key_index[
        query_y[:, None, None] + offset[:, None], query_x[:, None, None] + offset
    ]  # (queries, K, K)
    blocks = [-(-len(x) // FLEX_BLOCK) for x in (query_y, key_y)]
    used = torch.zeros(blocks, dtype=torch.int32, device=device)
    query_block = torch.arange(len(query_y), device=device) // FLEX_BLOCK
    used[query_block[:, None, None], windows // FLEX_BLOCK] = 1
    mask = BlockMask.from_kv_blocks(
        used.sum(1, dtype=torch.int32)[None, None],
        used.argsort(dim=1, descending=True, stable=True).int()[None, None],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=in_window,
        seq_lengths=(len(query_y), len(key_y)),
    )
    before = k // 2
    border = (before, low[1] - w - before, before, low[0] - h - before)

    @compiler
    def prepare(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = F.pad(query, (0, high[1] - w * s, 0, high[0] - h * s))
        maps = [to_tiles(F.pad(x, border), KEY_TILE) for x in (key, value)]
        return to_tiles(query, query_tile), *maps

    @compiler
    def finish(out: Tensor, layout: torch.memory_format) -> Tensor:
        out = from_tiles(out, query_tile, high)[:, :, : h * s, : w * s]
        return out.contiguous(memory_format=layout)

    attend = compiler(partial(flex_attention, block_mask=mask, scale=1.0))

    def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        last = value.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return finish(attend(*prepare(query, key, value)), layout)

    return flex


def mmcv_carafe(shape: Shape) -> Callable[..., Tensor]:
    """The assembly of mmcv's CARAFE: a function of value and weights.

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
    shape: Shape, device: torch.device, dtype: torch.dtype
) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    """SAPA-B as a network has it, norms and projections included, and its `Candidate.exact`.

    The projections are drawn so that scores are of order 1.

    Raises:
        ImportError: mmengine is missing.
    """
    upsamplers = importlib.import_module('sapa_mm.upsamplers')
    module = upsamplers.SAPA(
        shape.channels,
        similarity='bilinear',
        embed_dims=shape.embed,
        kernel_size=shape.kernel_size,
    )
    std = (shape.channels * shape.embed**0.5) ** -0.5
    for projection in (module.key_proj, module.query_proj):
        torch.nn.init.normal_(projection.weight, std=std)
    module = module.to(device, dtype)
    double = copy.deepcopy(module).double().requires_grad_(False)

    def exact(channels: Tensor, value: Tensor, guide: Tensor) -> Tensor:
        query, key = double.embed(value, guide)
        return reference.point_affiliation(
            query, key, value[:, channels], kernel_size=shape.kernel_size
        )

    return module, exact


def reason_of(error: BaseException) -> str:
    """Why something could not run, in a few words on one line: the error behind the errors."""
    while error.__cause__:
        error = error.__cause__
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in text:
        return 'out of memory'
    line = next((line for line in text.splitlines() if line.strip()), '')
    return textwrap.shorten(f'{type(error).__name__}: {line}'.replace('|', '/'), 160)


def candidates(
    shape: Shape, device: torch.device, dtype: torch.dtype, compilation: str
) -> list[Candidate]:
    """What is compared; the first is ours.

    Args:
        shape: The sizes.
        device: Of the tensors.
        dtype: Of the tensors.
        compilation: Name in `COMPILE_MODES`, or ``'off'`` to leave out what has to be compiled.
    """
    k, on_gpu = shape.kernel_size, device.type == 'cuda'
    ours = partial(ops.point_affiliation, kernel_size=k)
    unfold = partial(unfold_einsum, kernel_size=k)
    mode = COMPILE_MODES.get(compilation)
    compiler = partial(torch.compile, dynamic=False, fullgraph=True, mode=mode)
    off = 'only with --compile' if compilation == 'off' else None

    def exact(channels: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return reference.point_affiliation(query, key, value[:, channels], kernel_size=k)

    def exact_assembly(channels: Tensor, value: Tensor, weights: Tensor) -> Tensor:
        return reference.assemble(weights, value[:, channels], kernel_size=k)

    def bilinear(value: Tensor) -> Tensor:
        size = shape.sizes()['out'][2:]
        return F.interpolate(value, size, mode='bilinear', align_corners=False)

    def build(name: str, make: Callable[[], Candidate], reason: str | None = None) -> Candidate:
        """Make a candidate that may be impossible here."""
        if reason:
            return Candidate(name, reason=reason)
        try:
            return make()
        except Exception as error:  # of whatever kind: no rival ends the benchmark
            return Candidate(name, reason=reason_of(error))

    def make_compiled_unfold() -> Candidate:
        return Candidate('compiled unfold', compiler(unfold), exact=exact)

    def make_flex() -> Candidate:
        return Candidate('flex_attention', flex_affiliation(shape, device, compiler), exact=exact)

    def make_carafe() -> Candidate:
        inputs = ('value', 'weights')
        return Candidate('mmcv CARAFE', mmcv_carafe(shape), inputs, exact_assembly)

    def make_module() -> Candidate:
        module, exact_module = sapa_module(shape, device, dtype)
        parameters = tuple(module.parameters())
        return Candidate('SAPA-B module', module, ('value', 'guide'), exact_module, parameters)

    found = [Candidate(OURS, ours, exact=exact)]
    if on_gpu:
        forced = partial(ops.backend, 'torch')
        found.append(Candidate(f'{OURS} torch', ours, exact=exact, context=forced))
    found += [
        Candidate('unfold+einsum', unfold, exact=exact),
        build('compiled unfold', make_compiled_unfold, off),
        build('flex_attention', make_flex, off),
        build('mmcv CARAFE', make_carafe, None if on_gpu else 'mmcv has it for GPUs only'),
        Candidate(BILINEAR, bilinear, ('value',), backward_reads=False),
        build('SAPA-B module', make_module),
    ]
    return found


class Check:
    """Compares candidates with the float64 reference on one set of inputs.

    The first and the last image and channels are compared; elsewhere the output's gradient is 0.

    Args:
        shape: The sizes.
        tensors: By name; ``'out'`` is the output's gradient.
    """

    def __init__(self, shape: Shape, tensors: dict[str, Tensor]):
        def ends(length: int, count: int) -> Tensor:
            places = sorted({*range(length)[:count], *range(length)[-count:]})
            return torch.tensor(places, device=tensors['out'].device)

        self.shape, self.tensors = shape, tensors
        self.images, self.channels = ends(shape.batch, 1), ends(shape.channels, CHECKED_CHANNELS)
        self.place = self.images[:, None], self.channels
        self.grad = torch.zeros_like(tensors['out'])
        self.grad[self.place] = tensors['out'][self.place]
        self.expected: dict[Callable, list[Tensor]] = {}

    def reference(self, candidate: Candidate) -> list[Tensor]:
        """Output and gradients of a candidate's inputs, in float64, strip by strip."""
        shape, s = self.shape, self.shape.ratio
        halo = shape.kernel_size // 2
        inputs = [self.tensors[name][self.images].double() for name in candidate.inputs]
        grad = self.tensors['out'][self.place].double()
        results = [torch.zeros_like(x) for x in (grad, *inputs)]
        exact = Candidate('reference', partial(candidate.exact, self.channels), candidate.inputs)
        rows = max(1, REFERENCE_PIXELS // (len(grad) * grad.shape[3] * s))
        for y in range(0, shape.height, rows):
            # Nothing beyond the halo enters these rows; the halo's own results are left out.
            low = slice(max(y - halo, 0), min(y + rows + halo, shape.height))
            high = slice(low.start * s, low.stop * s)
            inner = slice(y * s, min(y + rows, shape.height) * s)
            strips = [high if name in HIGH_RESOLUTION else low for name in candidate.inputs]
            cut = [x[:, :, strip] for x, strip in zip(inputs, strips, strict=True)]
            strip_grad = torch.zeros_like(grad)
            strip_grad[:, :, inner] = grad[:, :, inner]
            named = dict(zip(exact.inputs, cut, strict=True))
            out, *grads = exact.run(named, strip_grad[:, :, high])
            rows_out = slice(inner.start - high.start, inner.stop - high.start)
            results[0][:, :, inner] = out[:, :, rows_out]
            for result, strip, part in zip(results[1:], strips, grads, strict=True):
                result[:, :, strip] += part
        return results

    def error(self, candidate: Candidate, got: list[Tensor]) -> float:
        """Worst max|error| / max|reference| of an output and, where there are, its gradients."""
        if candidate.exact not in self.expected:
            self.expected[candidate.exact] = self.reference(candidate)
        expected = self.expected[candidate.exact]
        got = [got[0][self.place], *(x[self.images] for x in got[1 : len(expected)])]
        errors = [
            (a.double() - b).abs().max() / b.abs().max()
            for a, b in zip(got, expected, strict=False)  # without a gradient the first alone
        ]
        return float(torch.stack(errors).max())  # unlike Python's max, of NaN and 1 this is NaN
