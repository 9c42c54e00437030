import pytest
import torch
from testing_utils import (
    BORDERS,
    DTYPES,
    NORMALIZATIONS,
    SIZES,
    Sizes,
    affiliation_inputs,
    assembly_inputs,
    assert_close_to_reference,
    border_margin,
    make_tensor,
)
from torch.nn import functional as F

from sapa_mm.ops import point_affiliation, reference
from sapa_mm.ops.decompositions import decompositions

OPERATORS = {operator._schema.name: function for operator, function in decompositions().items()}


def check(name, inputs, options, **kwargs):
    """Hold a decomposition to the float64 reference, at the border and inside."""
    low = inputs[-1].shape[2:]
    exact = [x.double() for x in inputs]
    expected = getattr(reference, name)(*exact, **kwargs)
    got = OPERATORS[f'sapa_mm::{name}'](*inputs, *options)
    assert got.dtype == inputs[0].dtype
    margin = border_margin(expected.shape[2:], low, kwargs['kernel_size'])
    assert_close_to_reference(got, expected, margin=margin)


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_point_affiliation(sizes, kernel_size):
    inputs = affiliation_inputs(sizes, dtype=torch.float64)
    for border in BORDERS:
        for normalization in NORMALIZATIONS:
            check(
                'point_affiliation',
                inputs,
                (kernel_size, normalization, 0.3, border),
                kernel_size=kernel_size,
                normalization=normalization,
                temperature=0.3,
                border=border,
            )


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_dtypes(dtype):
    inputs = affiliation_inputs(Sizes(2, 8, 6, (7, 9), (13, 18)), dtype=dtype)
    check('point_affiliation', inputs, (5, 'softmax', 1.0, 'zero'), kernel_size=5)


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_local_similarity(sizes, kernel_size):
    inputs = affiliation_inputs(sizes, dtype=torch.float64)[:2]
    options = dict(kernel_size=kernel_size, temperature=0.3)
    check('local_similarity', inputs, (kernel_size, 0.3), **options)


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_assemble(sizes, kernel_size):
    for groups in (1, sizes.c):
        inputs = assembly_inputs(sizes, kernel_size, groups, dtype=torch.float64)
        check('assemble', inputs, (kernel_size, groups), kernel_size=kernel_size, groups=groups)


@pytest.mark.parametrize('bins', [1, 2, 3, 6])
def test_adaptive_average_pooling(bins):
    x = make_tensor(2, 3, 7, 10, dtype=torch.float64)
    got = OPERATORS['aten::adaptive_avg_pool2d'](x, (bins, bins))
    torch.testing.assert_close(got, F.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_memory_format_is_the_operators(layout):
    inputs = affiliation_inputs(SIZES[1], layout=layout)
    got = OPERATORS['sapa_mm::point_affiliation'](*inputs, 5, 'softmax', 1.0, 'zero')
    assert got.stride() == point_affiliation(*inputs).stride()


def test_a_program_takes_any_sizes_and_has_no_operator_of_ours():
    class Model(torch.nn.Module):
        def forward(self, query, key, value):
            return point_affiliation(query, key, value, kernel_size=3, border='mask')

    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},) * 3
    # A whole ratio, which must not become a condition.
    inputs = affiliation_inputs(Sizes(2, 4, 3, (5, 6), (10, 12)))
    program = torch.export.export(Model(), inputs, dynamic_shapes=shapes, strict=False)
    program = program.run_decompositions(decompositions())
    assert not any('sapa_mm' in str(node.target) for node in program.graph.nodes)
    for sizes in (Sizes(3, 4, 3, (7, 9), (7, 9)), Sizes(1, 4, 3, (5, 8), (13, 31))):
        inputs = affiliation_inputs(sizes)
        expected = point_affiliation(*inputs, kernel_size=3, border='mask')
        torch.testing.assert_close(program.module()(*inputs), expected)
