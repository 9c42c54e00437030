"""Layouts and memory formats of the inputs, alike for the three operators."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from testing_utils import (
    BORDERS,
    LAYOUTS,
    Sizes,
    affiliation_inputs,
    assembly_inputs,
    check_against_reference,
    forward_and_gradients,
    make_tensor,
)
from torch import Tensor

from sapa_mm.ops import assemble, local_similarity, point_affiliation, reference

pytestmark = pytest.mark.usefixtures('poisoned_memory')

SIZE = Sizes(2, 6, 5, (7, 9), (14, 18))


class Operator(NamedTuple):
    call: Callable[..., Tensor]
    names: tuple[str, ...]
    make: Callable[..., tuple[Tensor, ...]]
    channels: int  # of the result

    def check(self, inputs: list[Tensor]) -> None:
        expected = getattr(reference, self.call.__name__)
        check_against_reference(self.call, expected, inputs, self.names, kernel_size=5)


OPERATORS = [
    Operator(
        point_affiliation,
        ('query', 'key', 'value'),
        lambda **options: affiliation_inputs(SIZE, **options),
        5,
    ),
    Operator(
        local_similarity,
        ('query', 'key'),
        lambda **options: affiliation_inputs(SIZE, **options)[:2],
        25,
    ),
    Operator(
        assemble,
        ('weights', 'value'),
        lambda **options: assembly_inputs(SIZE, 5, **options),
        5,
    ),
]
all_operators = pytest.mark.parametrize('operator', OPERATORS, ids=lambda o: o.call.__name__)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
@all_operators
def test_all_inputs_and_one_of_them(operator, layout, dtype, device):
    inputs = operator.make(dtype=dtype, layout=layout, device=device)
    operator.check(inputs)
    plain = operator.make(dtype=dtype, device=device)
    for position in range(len(inputs)):
        mixed = list(plain)
        mixed[position] = inputs[position]
        operator.check(mixed)


@pytest.mark.parametrize(
    ('layout', 'memory_format'),
    [('contiguous', torch.contiguous_format), ('channels_last', torch.channels_last)],
)
@pytest.mark.parametrize(
    ('operator', 'options'),
    [
        *((OPERATORS[0], dict(border=border)) for border in BORDERS),
        *((operator, {}) for operator in OPERATORS[1:]),
    ],
    ids=lambda value: value.call.__name__ if isinstance(value, Operator) else value.get('border'),
)
def test_memory_format_is_kept(operator, options, layout, memory_format, device):
    inputs = operator.make(layout=layout, device=device)
    grad = make_tensor(2, operator.channels, 14, 18, layout=layout, device=device)
    results = forward_and_gradients(operator.call, inputs, grad, **options)
    for what, result in zip(('output', *operator.names), results, strict=True):
        assert result.is_contiguous(memory_format=memory_format), what
