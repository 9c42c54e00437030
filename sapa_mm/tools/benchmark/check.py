"""The check of every candidate against the float64 reference."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .candidates import Candidate
from .shapes import Shape

# Maximum of max|error| / max|reference| with which a candidate is timed.
TOLERANCE = {'float32': 1e-5, 'float16': 4e-3, 'bfloat16': 3e-2}
HIGH_RESOLUTION = ('query', 'guide', 'weights', 'out')
# The first and the last image are compared, and this many of their first and last channels.
CHECKED_CHANNELS = 8
# Of their output, where it has more pixels than this, three bands of rows: the first, the last and
# those in the middle.
CHECKED_PIXELS = 2**17
# The reference computes this many pixels at a time.
REFERENCE_PIXELS = 2**14


def bands(height: int, count: int) -> list[range]:
    """Choose the rows that are checked.

    Args:
        height: Rows in all.
        count: How many may be checked.

    Returns:
        All rows; where there are more than ``count``, the first, the middle and the last of them,
        a third of ``count`` each and at least one.
    """
    third = max(1, count // 3)
    if height <= max(count, 3 * third):
        return [range(height)]
    starts = (0, (height - third) // 2, height - third)
    return [range(start, start + third) for start in starts]


class Check:
    """A `Check` compares candidates with the float64 reference on one set of inputs.

    Of the first and the last image and channels all rows are compared, or, where their output has
    more than `CHECKED_PIXELS`, three bands of rows. Elsewhere the output's gradient is 0, and all
    rows of these images' gradients are compared.

    Args:
        shape: The sizes.
        tensors: Tensors by name; ``'out'`` is the output's gradient.
    """

    def __init__(self, shape: Shape, tensors: dict[str, Tensor]):
        def ends(length: int, count: int) -> Tensor:
            places = sorted({*range(length)[:count], *range(length)[-count:]})
            return torch.tensor(places, device=tensors['out'].device)

        self.shape, self.tensors = shape, tensors
        self.images, self.channels = ends(shape.batch, 1), ends(shape.channels, CHECKED_CHANNELS)
        self.place = self.images[:, None], self.channels
        # A row of cells has this many pixels in the images that are compared.
        self.row_pixels = len(self.images) * tensors['out'].shape[3] * shape.ratio
        self.bands = bands(shape.height, CHECKED_PIXELS // self.row_pixels)
        self.halo = shape.kernel_size // 2
        self.grad = torch.zeros_like(tensors['out'])
        for band in self.bands:
            rows = self.rows(band, 'out')
            self.grad[:, :, rows][self.place] = tensors['out'][:, :, rows][self.place]
        self.expected: dict[Callable[..., Tensor], list[Tensor]] = {}

    def rows(self, cells: range, name: str, halo: int = 0) -> slice:
        """Return the rows of a tensor that belong to rows of cells, and ``halo`` more of these."""
        scale = self.shape.ratio if name in HIGH_RESOLUTION else 1
        start, stop = max(cells.start - halo, 0), min(cells.stop + halo, self.shape.height)
        return slice(start * scale, stop * scale)

    def kept(self, name: str) -> Tensor:
        """Return which rows of a tensor the reference gives: those that the bands determine.

        Args:
            name: Name of an input, whose gradient is 0 in all other rows, or ``'out'``.
        """
        rows = torch.zeros(self.tensors[name].shape[2], dtype=torch.bool)
        for band in self.bands:
            rows[self.rows(band, name, 0 if name == 'out' else self.halo)] = True
        return rows

    def reference(self, candidate: Candidate) -> list[Tensor]:
        """Compute the output and the gradients of the inputs in float64, strip by strip.

        Args:
            candidate: One that has ``exact``.

        Returns:
            The rows of each that `kept` names.
        """
        assert candidate.exact is not None, candidate.name
        exact = Candidate('reference', partial(candidate.exact, self.channels), candidate.inputs)
        names = ['out', *candidate.inputs]
        # A row's place among those that are kept.
        places = {name: (self.kept(name).cumsum(0) - 1).tolist() for name in names}
        results = []
        for name in names:
            x = self.tensors[name]
            n, c = len(self.images), len(self.channels) if name == 'out' else x.shape[1]
            size = n, c, places[name][-1] + 1, x.shape[3]
            results.append(torch.zeros(size, dtype=torch.float64, device=x.device))
        step = max(1, REFERENCE_PIXELS // self.row_pixels)
        for band in self.bands:
            for y in range(band.start, band.stop, step):
                cells = range(y, min(y + step, band.stop))
                # Nothing beyond the halo enters these rows; the halo's own results are left out.
                strips = [self.rows(cells, name, self.halo) for name in names]
                inner = self.rows(cells, 'out')
                inner = slice(inner.start - strips[0].start, inner.stop - strips[0].start)
                grad, *inputs = (
                    self.tensors[name][:, :, strip][self.images].double()
                    for name, strip in zip(names, strips, strict=True)
                )
                grad = grad[:, self.channels]
                masked = torch.zeros_like(grad)
                masked[:, :, inner] = grad[:, :, inner]
                parts = exact.run(dict(zip(candidate.inputs, inputs, strict=True)), masked)
                parts[0] = parts[0][:, :, inner]
                strips[0] = self.rows(cells, 'out')
                for name, result, strip, part in zip(names, results, strips, parts, strict=True):
                    place = places[name][strip.start]
                    result[:, :, place : place + part.shape[2]] += part
        return results

    def error(self, candidate: Candidate, got: list[Tensor]) -> float:
        """Compare with the reference.

        Args:
            candidate: One that has ``exact``.
            got: What its `Candidate.run` returned: the output and, where there are, gradients.

        Returns:
            The worst max|error| / max|reference| of these; NaN where one is.
        """
        assert candidate.exact is not None, candidate.name
        if candidate.exact not in self.expected:
            self.expected[candidate.exact] = self.reference(candidate)
        errors = []
        # Without a gradient the output is all there is.
        names = ['out', *candidate.inputs]
        for name, x, expected in zip(names, got, self.expected[candidate.exact], strict=False):
            kept = self.kept(name).to(x.device)
            x = x[self.place if name == 'out' else self.images]
            error = (x[:, :, kept].double() - expected).abs().max()
            if name != 'out' and not kept.all():
                error = torch.maximum(error, x[:, :, ~kept].abs().max().double())
            errors.append(error / expected.abs().max())
        return float(torch.stack(errors).max())  # unlike Python's max, of NaN and 1 this is NaN
