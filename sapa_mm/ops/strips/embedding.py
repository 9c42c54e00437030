"""The embedding works on a few rows of an image at a time, which stay in the cache.

Such a strip is a matrix of C channels and P pixels, in the memory order of its map: from channels
last maps it is the transpose of a contiguous one. So one code serves both, as matrix products take
either.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..dispatch import without_autocast
from ..layout import accumulation_dtype, is_channels_last
from ..memory import prefer_huge_pages
from ..parents import first_child, parents
from .geometry import DEVICE_STRIP_BYTES
from .scratch import Scratch

# A strip of the map has so many bytes. On a CPU with 1 MiB of cache a core and 32 MiB for all,
# fewer make too many small calls, and four times as many overflow the cache.
CPU_STRIP_BYTES = 2**20


class _Strip:
    """A strip holds some rows of an image of a map, and lends scratch memory in its order.

    Args:
        x: The map (N, C, H, W).
        image: The image.
        rows: The rows.
        scratch: What memory is taken from.
    """

    def __init__(self, x: Tensor, image: int, rows: slice, scratch: Scratch):
        self.image, self.rows, self.scratch = image, rows, scratch
        self.size = rows.stop - rows.start, x.shape[3]
        self.channels_last = is_channels_last(x)

    def take(self, name: str, channels: int) -> Tensor:
        """Take a matrix (channels, P), which holds anything."""
        pixels = self.size[0] * self.size[1]
        if self.channels_last:
            return self.scratch.take(name, pixels, channels).t()
        return self.scratch.take(name, channels, pixels)

    def load(self, name: str, source: Tensor) -> Tensor:
        """Read the strip of a map (N, C, H, W): a matrix (C, P), not to be written to."""
        part = source[self.image, :, self.rows]
        inner = part.stride(0 if self.channels_last else 2)
        even = self.size[0] == 1 or part.stride(1) == part.shape[2] * part.stride(2)
        if source.dtype == self.scratch.dtype and inner == 1 and even:
            return part.flatten(1)
        matrix = self.take(name, source.shape[1])
        matrix.unflatten(1, self.size).copy_(part)
        return matrix

    def statistics(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """View mean and reciprocal standard deviation of the pixels in (2, N, H, W): two (P,)."""
        mean, rstd = statistics[:, self.image, self.rows].flatten(1)
        return mean, rstd

    def store(self, matrix: Tensor, target: Tensor) -> None:
        """Write a matrix (C, P) to the strip of a map (N, C, H, W)."""
        target[self.image, :, self.rows] = matrix.unflatten(1, self.size)


def _strips(x: Tensor, image: int, scratch: Scratch) -> Iterator[_Strip]:
    """Cover an image of a map with strips; the memory of one is given back before the next."""
    _, channels, height, width = x.shape
    budget = CPU_STRIP_BYTES if x.device.type == 'cpu' else DEVICE_STRIP_BYTES
    step = max(1, budget // (channels * width * scratch.dtype.itemsize))
    for start in range(0, height, step):
        yield _Strip(x, image, slice(start, min(start + step, height)), scratch)
        scratch.give_back()


class _Affine:
    """The parameters, as they apply to what is centred and divided by the standard deviation.

    As a centred pixel sums to 0, the rows of the matrix may do so too. Then the rounding of a large
    mean, which is alike in all channels, does not reach the embedding. Products of parameters are
    made in float64, as what their rounding adds to the sum of a row would remain.

    Attributes:
        matrix: (D, C) or None: W gamma, its rows without their mean where x is normalized.
        scale: (C, 1) or None: gamma, where there is no W.
        shift: (D, 1) or None: W beta + b.
    """

    def __init__(
        self,
        x: Tensor,
        normalize: bool,
        weight: Tensor | None,
        bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
    ):
        dtype = accumulation_dtype(x.dtype)
        self.matrix = self.scale = None
        shift = norm_bias
        if weight is None:
            self.scale = None if norm_weight is None else norm_weight.to(dtype)[:, None]
        else:
            matrix = weight.double()
            if norm_bias is not None:
                shift = matrix @ norm_bias.double()
            if norm_weight is not None:
                matrix = matrix * norm_weight.double()
            if normalize:
                matrix = matrix - matrix.mean(1, keepdim=True)
            self.matrix = matrix.to(dtype)
            if bias is not None:
                shift = bias if shift is None else shift + bias
        self.shift = None if shift is None else shift.to(dtype)[:, None]


class _LowMap:
    """A map at low resolution is spread over the pixels of another, or summed over them.

    Columns are spread before the first strip of an image and summed after its last, rows in every
    strip.

    Args:
        x: The map (N, C, H, W) that strips cover.
        low: A map (N, *, h, w).
    """

    def __init__(self, x: Tensor, low: Tensor):
        self.dtype = accumulation_dtype(x.dtype)
        self.channels_last = is_channels_last(x)
        self.width, self.low_size = x.shape[3], low.shape[2:]
        self.low = low
        self.rows = parents(x.shape[2], self.low_size[0], x.device)
        self.columns = parents(self.width, self.low_size[1], x.device)
        #: The axis of rows in a table, (h, W, *) for channels last maps and (*, h, W) for others.
        self.axis = 0 if self.channels_last else 1

    def spread_columns(self, image: int) -> Tensor:
        """Give every column of an image its parent's values, in a table."""
        low = self.low[image].to(self.dtype)
        if self.channels_last:
            low = low.permute(1, 2, 0)
        return low.index_select(self.axis + 1, self.columns)

    def spread_rows(self, table: Tensor, strip: _Strip) -> Tensor:
        """Give every pixel of a strip its parent's values: (*, P)."""
        rows = table.index_select(self.axis, self.rows[strip.rows])
        rows = rows.flatten(self.axis, self.axis + 1)
        return rows.t() if self.channels_last else rows

    def empty_sums(self) -> Tensor:
        """Return a table of zeros for `add_rows` to add to."""
        shape = [self.low_size[0], self.width]
        shape.insert(2 if self.channels_last else 0, self.low.shape[1])
        return self.low.new_zeros(shape, dtype=self.dtype)

    def add_rows(self, sums: Tensor, matrix: Tensor, strip: _Strip) -> None:
        """Add the pixels (*, P) of a strip to the rows of their parents."""
        pixels = matrix.t() if self.channels_last else matrix
        sums.index_add_(self.axis, self.rows[strip.rows], pixels.unflatten(self.axis, strip.size))

    def sum_columns(self, sums: Tensor) -> Tensor:
        """Sum a table over the columns of one parent: (*, h, w)."""
        low_width, width = self.low_size[1], self.width
        cells = torch.arange(low_width + 1, device=sums.device)
        ends = torch.as_tensor(first_child(cells, width, low_width))
        first, stop = ends[:-1], ends[1:]
        total = torch.zeros((), dtype=sums.dtype, device=sums.device)
        for child in range(-(-width // low_width)):
            column = first + child
            part = sums.index_select(self.axis + 1, column.clamp(max=width - 1))
            if width % low_width:
                has = column < stop
                part = torch.where(has[:, None] if self.channels_last else has, part, 0)
            total = total + part
        return total.permute(2, 0, 1) if self.channels_last else total


def _low_maps(x: Tensor, gate: Tensor | None, addend: Tensor | None) -> dict[str, _LowMap]:
    """Return by its name what spreads each low-resolution map that is there over ``x``."""
    maps = {'gate': gate, 'addend': addend}
    return {name: _LowMap(x, low) for name, low in maps.items() if low is not None}


def _centre(strip: _Strip, pixels: Tensor, mean: Tensor, again: bool) -> Tensor:
    """Subtract the mean (P,) from pixels (C, P), and, ``again``, what its rounding left."""
    centred = torch.sub(pixels, mean, out=strip.take('centred', len(pixels)))
    return centred.sub_(centred.mean(0)) if again else centred


def _pull_back(strip: _Strip, affine: _Affine, grad: Tensor) -> Tensor:
    """Multiply the gradient (D, P) with M^T: (C, P), of sum 0 where pixels are centred."""
    if affine.matrix is not None:
        out = strip.take('pullback', affine.matrix.shape[1])
        return torch.mm(affine.matrix.t(), grad, out=out)
    out = strip.take('pullback', len(grad))
    if affine.scale is not None:
        grad = torch.mul(grad, affine.scale, out=out)
    return torch.sub(grad, grad.mean(0), out=out)


class _ParameterSums:
    """The gradients of all parameters are made from two sums over pixels.

    Attributes:
        total: The sum of the gradient (D,), or None if nobody needs it.
        outer: Likewise that of its outer products with the normalized pixels (D, C), or of its
            products with them (C,) where there is no projection.
    """

    def __init__(
        self, x: Tensor, weight: Tensor | None, norm_bias: Tensor | None, grads: dict[str, Tensor]
    ):
        self.dtype = accumulation_dtype(x.dtype)
        shape = x.shape[1:2] if weight is None else weight.shape
        self.total: Tensor | None = None
        self.outer: Tensor | None = None
        if {'bias', 'norm_bias'} & grads.keys() or ('weight' in grads and norm_bias is not None):
            self.total = x.new_zeros(shape[0], dtype=self.dtype)
        if {'weight', 'norm_weight'} & grads.keys():
            self.outer = x.new_zeros(shape, dtype=self.dtype)

    def add(self, grad: Tensor, pixels: Tensor | None, rstd: Tensor | None) -> None:
        """Add a strip's gradient (D, P), and its products with centred pixels (C, P)."""
        if self.total is not None:
            self.total.add_(grad.sum(1))
        if self.outer is not None and pixels is not None:
            scaled = grad if rstd is None else grad * rstd
            if self.outer.dim() == 2:
                self.outer.addmm_(scaled, pixels.t())
            else:
                self.outer.add_((scaled * pixels).sum(1))

    def gradients(
        self, weight: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Return the gradients of the parameters, some of those that nobody needs among them."""
        total, outer = self.total, self.outer
        if weight is None:
            return {'norm_weight': outer, 'norm_bias': total}
        found = {'weight': outer, 'bias': total}
        if outer is not None:
            found['norm_weight'] = (weight * outer).sum(0)
            if norm_weight is not None:
                found['weight'] = outer * norm_weight
        if total is not None:
            found['norm_bias'] = weight.to(self.dtype).t() @ total
            if norm_bias is not None and found['weight'] is not None:
                found['weight'] = torch.addr(found['weight'], total, norm_bias.to(self.dtype))
        return found


@without_autocast
def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gate: Tensor | None,
    addend: Tensor | None,
    out: Tensor,
    statistics: Tensor | None,
    eps: float,
) -> None:
    """Write the embedding and the statistics.

    Args:
        x: (N, C, H, W), any strides.
        weight: W (D, C) or None.
        bias: (D,) or None.
        norm_weight: (C,) or None.
        norm_bias: (C,) or None.
        gate: Logits (N, 1, h, w) or None.
        addend: (N, D, h, w) or None.
        out: (N, D, H, W), written to.
        statistics: (2, N, H, W), in the accumulation dtype; mean and reciprocal standard deviation
            are written to it. None, if x is not to be normalized.
        eps: Added to the variance.
    """
    affine = _Affine(x, statistics is not None, weight, bias, norm_weight, norm_bias)
    low = _low_maps(x, gate, addend)
    scratch = Scratch(accumulation_dtype(x.dtype), x.device)
    prefer_huge_pages(out)
    for image in range(len(x)):
        tables = {name: low[name].spread_columns(image) for name in low}
        for strip in _strips(x, image, scratch):
            result = strip.load('x', x)
            if statistics is not None:
                mean, rstd = strip.statistics(statistics)
                torch.mean(result, 0, out=mean)
                result = _centre(strip, result, mean, again=weight is None)
                squares = torch.mul(result, result, out=strip.take('squares', len(result)))
                torch.rsqrt(squares.mean(0).add_(eps), out=rstd)
            if affine.matrix is not None:
                embedded = strip.take('embedded', len(affine.matrix))
                result = torch.mm(affine.matrix, result, out=embedded)
            if statistics is not None:
                result.mul_(rstd)
            if affine.scale is not None:
                result.mul_(affine.scale)
            if affine.shift is not None:
                result.add_(affine.shift)
            spread = {name: low[name].spread_rows(tables[name], strip) for name in low}
            if 'gate' in spread:
                torch.lerp(spread['addend'], result, spread['gate'].sigmoid_(), out=result)
            elif 'addend' in spread:
                result.add_(spread['addend'])
            strip.store(result, out)


@without_autocast
def backward(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gate: Tensor | None,
    addend: Tensor | None,
    out: Tensor | None,
    grads: dict[str, Tensor],
) -> None:
    """Write the gradients that are asked for.

    For g, the gradient of one pixel's e, and the matrix M of `_Affine`, whose rows sum to 0, let
    u = M^T g / sigma. The gradient of x is u - (x - mu) <u, x - mu> / (C sigma^2), and
    <u, x - mu> is <g, e - shift> too, which the gate's gradient has to know. Those of all
    parameters follow from the sums over pixels of g and of the outer products of g and
    (x - mu) / sigma.

    Args:
        grad: Gradient of the embedding (N, D, H, W), any strides.
        x: As `forward` had it.
        statistics: What it wrote, or None.
        weight: As `forward` had it.
        bias: Likewise.
        norm_weight: Likewise.
        norm_bias: Likewise.
        gate: Likewise.
        addend: Likewise.
        out: What `forward` wrote, for the gate; not needed here.
        grads: Written to: by the name of an argument its gradient, like the argument.
    """
    affine = _Affine(x, statistics is not None, weight, bias, norm_weight, norm_bias)
    low = _low_maps(x, gate, addend)
    sums = _ParameterSums(x, weight, norm_bias, grads)
    scratch = Scratch(accumulation_dtype(x.dtype), x.device)
    wants_x, wants_gate, wants_addend = (name in grads for name in ('x', 'gate', 'addend'))
    if wants_x:
        prefer_huge_pages(grads['x'])
    for image in range(len(x)):
        tables = {name: low[name].spread_columns(image) for name in low}
        low_sums = {name: low[name].empty_sums() for name in low if name in grads}
        for strip in _strips(x, image, scratch):
            g = own = strip.load('grad', grad)
            if 'gate' in low:
                share = low['gate'].spread_rows(tables['gate'], strip).sigmoid_()
                own = torch.mul(g, share, out=strip.take('own', len(g)))
            if wants_addend:
                rest = g - own if 'gate' in low else g
                low['addend'].add_rows(low_sums['addend'], rest, strip)
            pixels = rstd = None
            if wants_x or wants_gate or sums.outer is not None:
                pixels = strip.load('x', x)
                if statistics is not None:
                    mean, rstd = strip.statistics(statistics)
                    pixels = _centre(strip, pixels, mean, again=True)
            sums.add(own, pixels, rstd)
            if pixels is None or not (wants_x or wants_gate):
                continue
            pullback = _pull_back(strip, affine, g if rstd is None else g * rstd)
            products = torch.mul(pullback, pixels, out=strip.take('products', len(pixels)))
            inner = products.sum(0, keepdim=True)
            if wants_gate:
                other = low['addend'].spread_rows(tables['addend'], strip)
                if affine.shift is not None:
                    other = other - affine.shift
                by_share = inner - (g * other).sum(0)
                by_gate = by_share * share * (1 - share)
                low['gate'].add_rows(low_sums['gate'], by_gate, strip)
            if wants_x:
                if 'gate' in low:
                    pullback.mul_(share)
                    inner.mul_(share)
                if rstd is not None:
                    factor = inner.mul_(rstd.square())
                    pullback.addcmul_(pixels, factor, value=-1 / len(pixels))
                strip.store(pullback, grads['x'])
        for name, table in low_sums.items():
            grads[name][image] = low[name].sum_columns(table)
    for name, gradient in sums.gradients(weight, norm_weight, norm_bias).items():
        if name in grads and gradient is not None:
            grads[name].copy_(gradient)
