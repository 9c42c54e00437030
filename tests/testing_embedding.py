"""Cases of `embed` that every backend has to pass, and what holds them to the reference."""

from typing import NamedTuple

import torch
from testing_utils import TOLERANCES, assert_close_to_reference, make_tensor
from torch import Tensor

from sapa_mm.ops import embed, reference
from sapa_mm.ops.dispatch import requested_backend

#: The arguments that have gradients, in the operator's order.
NAMES = ('x', 'weight', 'bias', 'norm_weight', 'norm_bias', 'gate', 'addend')
PARAMETERS = NAMES[1:5]


class Case(NamedTuple):
    """One call: sizes, which optional tensors there are, and how they lie in memory.

    `high` and `low` are (H, W) of x and (h, w) of gate and addend.
    """

    name: str
    n: int = 2
    c: int = 5
    d: int = 3
    high: tuple[int, int] = (7, 9)
    low: tuple[int, int] = (3, 4)
    tensors: tuple[str, ...] = PARAMETERS
    normalize: bool = True
    eps: float = 1e-5
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype | None = None
    layout: str = 'contiguous'
    low_layout: str = 'contiguous'
    grad_layout: str = 'contiguous'
    mean: float = 0.5

    def __str__(self) -> str:
        return self.name

    def make(self, device: str = 'cpu') -> dict[str, Tensor]:
        """The tensors of the call, by the name of the argument."""
        width = self.d if 'weight' in self.tensors else self.c
        wide = self.parameter_dtype or self.dtype
        made = {
            'x': make_tensor(
                self.n,
                self.c,
                *self.high,
                dtype=self.dtype,
                layout=self.layout,
                mean=self.mean,
                device=device,
            )
        }
        shapes = {'weight': (width, self.c), 'bias': (width,)}
        shapes |= {'norm_weight': (self.c,), 'norm_bias': (self.c,)}
        for name, shape in shapes.items():
            scale = self.c**-0.5 if name == 'weight' else 1.0
            values = scale * torch.randn(shape, dtype=torch.float64)
            made[name] = values.to(device=device, dtype=wide)
        for name, channels in (('gate', 1), ('addend', width)):
            made[name] = make_tensor(
                self.n, channels, *self.low, dtype=self.dtype, layout=self.low_layout, device=device
            )
        return {name: made[name] for name in NAMES if name == 'x' or name in self.tensors}


ALL = (*PARAMETERS, 'gate', 'addend')

#: Every set of optional tensors, of which some are there.
OPTIONS = [
    Case('everything', tensors=ALL),
    Case('norm and projection'),
    Case('addend', tensors=(*PARAMETERS, 'addend')),
    Case('no affine', tensors=('weight', 'bias')),
    Case('norm_weight alone', tensors=('weight', 'bias', 'norm_weight')),
    Case('norm_bias alone', tensors=('weight', 'bias', 'norm_bias')),
    Case('no bias', tensors=('weight', 'norm_weight', 'norm_bias', 'gate', 'addend')),
    Case('weight alone', tensors=('weight',)),
    Case('norm alone', tensors=()),
    Case('affine norm alone', tensors=('norm_weight', 'norm_bias')),
    Case('norm and norm_weight', tensors=('norm_weight',)),
    Case('norm and norm_bias', tensors=('norm_bias',)),
    Case('norm, gate and addend', tensors=('gate', 'addend')),
    Case('affine norm and addend', tensors=('norm_weight', 'norm_bias', 'addend')),
    Case('projection alone', tensors=('weight', 'bias'), normalize=False),
    Case('projection without bias', tensors=('weight',), normalize=False),
    Case('projection, gate, addend', tensors=('weight', 'gate', 'addend'), normalize=False),
    Case('large eps', tensors=ALL, eps=0.5),
]

#: Widths, and sizes of either map: 1 x 1, equal ones, whole and broken ratios.
SIZES = [
    *(Case(f'd{d}', d=d, tensors=ALL) for d in (1, 32, 65)),
    *(Case(f'c{c}', c=c, d=7, tensors=ALL) for c in (1, 2, 64, 300)),
    *(Case(f'c{c} unprojected', c=c, tensors=('norm_weight', 'norm_bias')) for c in (1, 64, 300)),
    *(
        Case(f'{h}x{w} of {low_h}x{low_w}', n=n, high=(h, w), low=(low_h, low_w), tensors=ALL)
        for n, (h, w), (low_h, low_w) in [
            (1, (1, 1), (1, 1)),
            (1, (7, 9), (7, 9)),
            (3, (12, 8), (6, 4)),
            (1, (13, 31), (5, 8)),
            (2, (9, 10), (8, 9)),
            # These are sizes at which F.interpolate's float32 parents are off by one.
            (1, (46, 7), (14, 4)),
            (1, (5, 6), (1, 1)),
        ]
    ),
    # It has more than one strip, or tile, with a rest.
    Case('many rows', n=1, c=70, d=33, high=(67, 129), low=(33, 65), tensors=ALL),
    Case('long rows', n=1, c=64, d=4, high=(2, 5000), low=(1, 2500), tensors=ALL),
]

LAYOUTS = [
    Case(f'{layout} {dtype}', c=6, layout=layout, dtype=dtype, tensors=tensors)
    for layout in ('contiguous', 'channels_last', 'sliced', 'transposed', 'expanded')
    for dtype, tensors in ((torch.float32, ALL), (torch.bfloat16, ALL), (torch.float64, ()))
] + [
    Case(f'{layout}, {low_layout}, {grad_layout}', tensors=ALL)._replace(
        layout=layout, low_layout=low_layout, grad_layout=grad_layout
    )
    for layout in ('contiguous', 'channels_last')
    for low_layout, grad_layout in [
        ('channels_last', 'contiguous'),
        ('sliced', 'channels_last'),
        ('contiguous', 'expanded'),
        ('channels_last', 'transposed'),
    ]
]

DTYPES = [
    Case(f'{dtype}, {wide}, {kind}', c=24, d=8, dtype=dtype, parameter_dtype=wide, tensors=tensors)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for wide in dict.fromkeys((dtype, torch.float32))
    for kind, tensors in (('projected', ALL), ('normalized', ('norm_weight', 'norm_bias')))
]

#: Pixels whose mean is far from 0 for their deviation.
MEANS = [
    Case(f'mean {mean} {dtype} {layout} {kind}', c=64, d=8, dtype=dtype, layout=layout)._replace(
        mean=mean, tensors=tensors
    )
    for mean, dtype in ((100.0, torch.float32), (-30.0, torch.bfloat16), (30.0, torch.float16))
    for layout in ('contiguous', 'channels_last')
    for kind, tensors in (('projected', ALL), ('normalized', ('norm_weight', 'norm_bias')))
]

CASES = [*OPTIONS, *SIZES, *LAYOUTS, *DTYPES, *MEANS]


def exact_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in float64 on the CPU."""
    return {name: tensor.detach().double().cpu() for name, tensor in tensors.items()}


def results(function, tensors: dict[str, Tensor], grad: Tensor, **options) -> dict[str, Tensor]:
    """The embedding under '' and every gradient under the name of its argument."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    out = function(**leaves, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
    return {'': out.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_close(got: Tensor, expected: Tensor, **options) -> None:
    """Hold a map or a parameter to its reference; a vector counts as one row."""
    assert_close_to_reference(torch.atleast_2d(got), torch.atleast_2d(expected), **options)


def check_case(case: Case, device: str) -> None:
    """Hold the embedding and all gradients of a case to the float64 reference."""
    tensors = case.make(device)
    options = dict(normalize=case.normalize, eps=case.eps)
    on_matrix_units = device != 'cpu' or requested_backend() == 'triton'
    exact = exact_copies(tensors)
    shape = reference.embed(**exact, **options).shape
    grad = make_tensor(*shape, dtype=case.dtype, layout=case.grad_layout, device=device)
    actual = results(embed, tensors, grad, **options)
    expected = results(reference.embed, exact, grad.double().cpu(), **options)
    for name, got in actual.items():
        what = f'gradient of {name}' if name else 'output'
        assert got.dtype == (tensors[name].dtype if name else case.dtype), what
        wide = name in PARAMETERS and case.dtype not in (torch.float64, torch.float32)
        # Gradients of float32 parameters are as exact as the half precision gradient allows; on
        # matrix units that gradient is scaled first, and rounded again.
        wide_tolerance = TOLERANCES[case.dtype] if on_matrix_units else 5e-6
        assert_close(
            got,
            expected[name],
            tolerance=wide_tolerance if wide and got.dtype == torch.float32 else None,
            floor=_floor(case, name),
            what=what,
        )


def _floor(case: Case, name: str) -> float:
    """What an error is measured by at least, where the truth is 0: one channel is its own mean."""
    return 1.0 if case.c == 1 and name in ('', 'x', 'weight', 'norm_weight') else 0.0
