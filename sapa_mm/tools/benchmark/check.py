"""The check of every candidate against the float64 reference."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .candidates import Candidate
from .shapes import Shape

# Maximum of max|error| / max|reference| with which a candidate is timed.
TOLERANCE = {'float32': 1e-5, 'float16': 4e-3, 'bfloat16': 3e-2}
HIGH_RESOLUTION = ('query', 'guide', 'weights')
# The first and the last image are compared, and this many of their first and last channels.
CHECKED_CHANNELS = 8
# The reference computes this many pixels at a time.
REFERENCE_PIXELS = 2**15


class Check:
    """A `Check` compares candidates with the float64 reference on one set of inputs.

    The first and the last image and channels are compared; elsewhere the output's gradient is 0.

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
        self.grad = torch.zeros_like(tensors['out'])
        self.grad[self.place] = tensors['out'][self.place]
        self.expected: dict[Callable[..., Tensor], list[Tensor]] = {}

    def reference(self, candidate: Candidate) -> list[Tensor]:
        """Compute the output and the gradients of the inputs in float64, strip by strip.

        Args:
            candidate: One that has ``exact``.
        """
        assert candidate.exact is not None, candidate.name
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
        expected = self.expected[candidate.exact]
        got = [got[0][self.place], *(x[self.images] for x in got[1 : len(expected)])]
        errors = [
            (a.double() - b).abs().max() / b.abs().max()
            for a, b in zip(got, expected, strict=False)  # without a gradient the first alone
        ]
        return float(torch.stack(errors).max())  # unlike Python's max, of NaN and 1 this is NaN
