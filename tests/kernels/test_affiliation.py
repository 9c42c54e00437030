import itertools
import math

import pytest
import torch
from testing_utils import (
    BORDERS,
    KERNEL_DTYPES,
    LAYOUTS,
    NORMALIZATIONS,
    SIZES,
    TOLERANCES,
    Sizes,
    affiliation_inputs,
    assert_close_to_reference,
    check_against_reference,
    forward_and_gradients,
    make_tensor,
)

from sapa_mm.kernels import affiliation_backward, launch
from sapa_mm.ops import backend, point_affiliation, reference

pytestmark = pytest.mark.usefixtures('poisoned_memory')

NAMES = ('query', 'key', 'value')
RESULTS = ('output', *(f'gradient of {name}' for name in NAMES))
SMALL = Sizes(1, 6, 7, (4, 5), (8, 9))
# The smallest number that fp16 holds with all of its digits.
FP16_TINY = torch.finfo(torch.float16).tiny


def make_inputs(sizes, normalization='softmax', **kwargs):
    """As affiliation_inputs, but for relu most scores are positive.

    A window with few positive scores is ill-conditioned.
    """
    query, key, value = affiliation_inputs(sizes, **kwargs)
    if normalization == 'relu':
        shift = 0.75 * sizes.d**-0.25
        query, key = query + shift, key + shift
    return query, key, value


def check(inputs, kernel_size=5, border='zero', floor=0.0, **kwargs):
    """Forward and gradients of the kernels against the reference."""
    # All positions are one pixel: gradients of the normalized weights cancel to about zero.
    one_pixel = kernel_size == 1 or (inputs[1].shape[2:] == (1, 1) and border != 'zero')
    with backend('triton'):
        check_against_reference(
            point_affiliation,
            reference.point_affiliation,
            inputs,
            NAMES,
            floor=max(floor, float(one_pixel)),
            kernel_size=kernel_size,
            border=border,
            **kwargs,
        )


def run(inputs, grad, **kwargs):
    with backend('triton'):
        return forward_and_gradients(point_affiliation, inputs, grad, **kwargs)


def run_reference(inputs, grad, **kwargs):
    exact = [tensor.double().cpu() for tensor in inputs]
    return forward_and_gradients(reference.point_affiliation, exact, grad.double().cpu(), **kwargs)


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize('ratio', range(1, 9))
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7, 9])
def test_window_ratio_border(kernel_size, ratio, border, kernel_device):
    low = (3, 4) if ratio < 3 else (2, 1) if ratio % 2 else (1, 2)
    sizes = Sizes(1, 4, 5, low, (ratio * low[0], ratio * low[1]))
    check(affiliation_inputs(sizes, device=kernel_device), kernel_size, border)


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_normalizations(normalization, border, dtype, kernel_device):
    inputs = make_inputs(SMALL, normalization, dtype=dtype, device=kernel_device)
    check(inputs, border=border, normalization=normalization)


@pytest.mark.parametrize('temperature', [0.25, 3, 0.07])
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_temperature(temperature, normalization, kernel_device):
    # At 0.07 the scores are so large that fp32's own rounding of them shows in their exponential.
    dtype = torch.float16 if temperature < 0.1 else torch.float32
    inputs = make_inputs(SMALL, normalization, dtype=dtype, device=kernel_device)
    check(inputs, 3, normalization=normalization, temperature=temperature)


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize('low', [(4, 4), (8, 8), (5, 9), (17, 3), (3, 16)], ids=str)
def test_edges_of_tiles(low, border, kernel_device):
    """Maps that end with a tile, and one pixel before or behind its end."""
    inputs = affiliation_inputs(Sizes(1, 5, 6, low, low), device=kernel_device)
    check(inputs, 5, border)


@pytest.mark.parametrize('ratio', [7, 8])
def test_large_ratio_over_several_tiles(ratio, kernel_device):
    sizes = Sizes(1, 3, 4, (3, 2), (3 * ratio, 2 * ratio))
    check(affiliation_inputs(sizes, device=kernel_device), 3, 'mask')


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, dtype, kernel_device):
    inputs = affiliation_inputs(SMALL, dtype=dtype, layout=layout, device=kernel_device)
    check(inputs, 3, grad_layout=layout)


@pytest.mark.parametrize('layout', LAYOUTS[1:])
@pytest.mark.parametrize('position', range(4))
def test_one_tensor_lies_apart(position, layout, kernel_device):
    layouts = ['contiguous'] * 4
    layouts[position] = layout
    inputs = [
        affiliation_inputs(SMALL, layout=x, device=kernel_device)[i]
        for i, x in enumerate(layouts[:3])
    ]
    check(inputs, 3, grad_layout=layouts[3])


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize(
    ('layout', 'memory_format'),
    [('contiguous', torch.contiguous_format), ('channels_last', torch.channels_last)],
)
def test_memory_format_is_kept(layout, memory_format, border, kernel_device):
    inputs = affiliation_inputs(SMALL, layout=layout, device=kernel_device)
    for grad_layout in ('contiguous', 'channels_last'):
        grad = make_tensor(1, 7, 8, 9, layout=grad_layout, device=kernel_device)
        results = run(inputs, grad, kernel_size=3, border=border)
        for what, result in zip(RESULTS, results, strict=True):
            assert result.is_contiguous(memory_format=memory_format), what


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize(
    ('low', 'high'),
    [((1, 1), (1, 1)), ((1, 1), (5, 3)), ((2, 2), (4, 4)), ((3, 2), (3, 5))],
    ids=str,
)
def test_maps_smaller_than_the_window(low, high, border, kernel_device):
    inputs = affiliation_inputs(Sizes(2, 5, 4, low, high), device=kernel_device)
    for kernel_size in (7, 9):
        check(inputs, kernel_size, border)


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize(
    ('low', 'high'),
    [((1, 19), (1, 19)), ((1, 9), (3, 18)), ((19, 1), (19, 1)), ((9, 1), (17, 2))],
    ids=str,
)
def test_rows_and_columns(low, high, border, kernel_device):
    inputs = affiliation_inputs(Sizes(1, 5, 4, low, high), device=kernel_device)
    check(inputs, 5, border)


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(('d', 'c'), [(1, 1), (3, 300), (200, 3), (33, 65)])
def test_channels(d, c, dtype, kernel_device):
    inputs = affiliation_inputs(Sizes(1, d, c, (3, 5), (6, 9)), dtype=dtype, device=kernel_device)
    check(inputs, 3)


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_window_of_one(normalization, dtype, kernel_device):
    query, key, value = affiliation_inputs(SMALL, dtype=dtype, device=kernel_device)
    # The quotient of a single small score and itself, plus epsilon, is ill-conditioned.
    check((query.abs() + 0.5, key.abs() + 0.5, value), 1, normalization=normalization)


@pytest.mark.parametrize('border', BORDERS)
def test_relu_of_negative_scores_is_zero(border, kernel_device):
    query = torch.ones(1, 4, 6, 6, device=kernel_device)
    key = -torch.ones(1, 4, 3, 3, device=kernel_device)
    value = make_tensor(1, 5, 3, 3, device=kernel_device)
    grad = make_tensor(1, 5, 6, 6, device=kernel_device)
    results = run((query, key, value), grad, normalization='relu', border=border)
    for what, result in zip(RESULTS, results, strict=True):
        assert result.eq(0).all(), what


def test_by_hand(kernel_device):
    # softmax weights 1, 2, 3, 1 inside and five times 1 outside
    key = torch.tensor([[1.0, 2.0], [3.0, 1.0]], device=kernel_device).log()[None, None]
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=kernel_device)[None, None]
    query = torch.ones(1, 1, 4, 4, device=kernel_device)
    with backend('triton'):
        for border, expected in (('zero', 18 / 12), ('mask', 18 / 7)):
            out = point_affiliation(query, key, value, kernel_size=3, border=border)
            torch.testing.assert_close(out, torch.full_like(out, expected))
        out = point_affiliation(query, key, value, kernel_size=3, border='replicate')
    assert out[0, 0, 0, 0].item() == pytest.approx(34 / 15, rel=1e-6)
    assert out[0, 0, 3, 3].item() == pytest.approx((1 + 8 + 18 + 16) / (1 + 4 + 6 + 4), rel=1e-6)


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_scores_beyond_the_range_of_fp16(normalization, kernel_device):
    sizes = Sizes(1, 32, 4, (4, 5), (8, 10))
    query, key, value = affiliation_inputs(sizes, dtype=torch.float16, device=kernel_device)
    query, key = query * 500, key * 500
    grad = make_tensor(1, 4, 8, 10, dtype=torch.float16, device=kernel_device)
    if normalization == 'none':
        # The scores themselves are the weights.
        value, grad = value / 1024, grad / 1024
    inputs = (query, key, value)
    exact = [tensor.double().cpu() for tensor in inputs]
    assert reference.local_similarity(*exact[:2]).abs().max() > 2 * torch.finfo(torch.float16).max
    actual = run(inputs, grad, normalization=normalization)
    expected = run_reference(inputs, grad, normalization=normalization)
    # The value's gradient comes from scores that are computed once more, maybe in another order:
    # what float32 rounds of them is a part of a softmax's weights.
    largest = reference.local_similarity(*exact[:2]).abs().max().item()
    rounded = math.expm1(2 * 2**-24 * largest) if normalization == 'softmax' else 0.0
    # Where h is flat, as that of sigmoid is at such scores, query and key have no gradient.
    for what, got, correct in zip(RESULTS, actual, expected, strict=True):
        tolerance = TOLERANCES[torch.float16]
        if what == 'gradient of value':
            tolerance += rounded
        assert_close_to_reference(got, correct, tolerance=tolerance, floor=FP16_TINY, what=what)


@pytest.mark.parametrize('normalization', ['softmax', 'softplus', 'none'])
@pytest.mark.parametrize('large', [0, 1], ids=['query', 'key'])
def test_gradients_of_scores_too_small_for_fp16(large, normalization, kernel_device):
    """The gradients of the scores vanish in fp16, those of query or key do not."""
    size = [1 / 256, 1 / 256]
    size[large] = 256
    query, key, value = affiliation_inputs(SMALL, dtype=torch.float16, device=kernel_device)
    inputs = (query * size[0], key * size[1], value * 1e-3)
    grad = 1e-3 * make_tensor(1, 7, 8, 9, dtype=torch.float16, device=kernel_device)
    actual = run(inputs, grad, normalization=normalization)
    expected = run_reference(inputs, grad, normalization=normalization)
    for position in (0, 1, 2, 3):
        correct = expected[position]
        if position == 2 - large:
            assert correct.abs().max() > FP16_TINY
        assert_close_to_reference(
            actual[position], correct, floor=FP16_TINY, what=RESULTS[position]
        )


@pytest.mark.parametrize('normalization', ['softmax', 'sigmoid'])
def test_the_least_gradients_of_the_key_are_as_exact_as_fp16(normalization, kernel_device):
    """A pixel's factor times its query must not be rounded where fp16 has few digits left."""
    query, key, value = affiliation_inputs(SMALL, dtype=torch.float16, device=kernel_device)
    grad = 2**-16 * make_tensor(1, 7, 8, 9, dtype=torch.float16, device=kernel_device)
    inputs = (query, key, value * 2**-2)
    actual = run(inputs, grad, normalization=normalization)[2].double().cpu()
    expected = run_reference(inputs, grad, normalization=normalization)[2]
    assert expected.abs().max() < FP16_TINY
    # Half a step between the smallest numbers, and what the gradients of the scores lose.
    error = (actual - expected).abs().max().item()
    assert error <= 0.5 * 2**-24 + 2e-3 * expected.abs().max().item()


def test_gradient_of_a_sum(kernel_device):
    """Autograd expands the gradient of a sum from one number."""
    inputs = affiliation_inputs(SMALL, device=kernel_device)
    grad = torch.ones(1, device=kernel_device).expand(1, 7, 8, 9)
    actual = run(inputs, grad)
    for what, got, correct in zip(RESULTS, actual, run_reference(inputs, grad), strict=True):
        assert_close_to_reference(got, correct, margin=(4, 4), what=what)


SUBSETS = [x for n in range(4) for x in itertools.combinations(range(3), n)]


@pytest.mark.parametrize('border', ['zero', 'replicate'])
@pytest.mark.parametrize('normalization', ['softmax', 'none'])
@pytest.mark.parametrize('wanted', SUBSETS[1:], ids=str)
def test_only_some_inputs_need_a_gradient(wanted, normalization, border, kernel_device):
    options = dict(normalization=normalization, border=border)
    inputs = affiliation_inputs(SMALL, device=kernel_device)
    grad = make_tensor(1, 7, 8, 9, device=kernel_device)
    _, *expected = run_reference(inputs, grad, **options)
    for position in wanted:
        inputs[position].requires_grad_()
    with backend('triton'):
        point_affiliation(*inputs, **options).backward(grad)
    for position, tensor in enumerate(inputs):
        if position in wanted:
            assert_close_to_reference(tensor.grad, expected[position], what=NAMES[position])
        else:
            assert tensor.grad is None, NAMES[position]


SCORES, KEY, VALUE = (f'affiliation_{name}bwd_kernel' for name in ('', 'key_', 'value_'))


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('wanted', SUBSETS, ids=str)
def test_gradients_not_asked_for_are_not_computed(wanted, normalization):
    """What is launched for each subset, and what each launch is given to write to."""
    query, key, value = (x.to('meta') for x in affiliation_inputs(SMALL, layout='channels_last'))
    grads = [x if i in wanted else None for i, x in enumerate((query, key, value))]
    grad = make_tensor(1, 7, 8, 9, layout='channels_last').to('meta')
    with launch.record(launch.INTERPRETER) as launches:
        affiliation_backward.backward(
            grad, query, key, value, *grads, 5, normalization, 1.0, 'zero', 1e-6
        )
    # Weights that nothing is divided by need no scale from the scores.
    scale = 2 in wanted and normalization != 'none'
    expected = []
    if 0 in wanted or 1 in wanted or scale:
        expected.append(SCORES)
    if 1 in wanted:
        expected.append(KEY)
    if 2 in wanted:
        expected.append(VALUE)
    found = {item.kernel.__name__: item.arguments for item in launches}
    assert [item.kernel.__name__ for item in launches] == expected
    if SCORES in found:
        written = [
            found[SCORES][name] is not None for name in ('grad_query', 'parts_ptr', 'scale_ptr')
        ]
        assert written == [0 in wanted, 1 in wanted, scale]
    if VALUE in found:
        assert (found[VALUE]['scale_ptr'] is not None) == scale


def test_inputs_are_not_written_to(kernel_device):
    inputs = affiliation_inputs(SMALL, device=kernel_device)
    grad = make_tensor(1, 7, 8, 9, device=kernel_device)
    copies = [tensor.clone() for tensor in (*inputs, grad)]
    run(inputs, grad, border='replicate')
    assert all(map(torch.equal, (*inputs, grad), copies))


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('border', ['zero', 'replicate'])
def test_two_runs_are_bitwise_equal(border, dtype, kernel_device):
    sizes = Sizes(2, 6, 9, (3, 4), (6, 7))
    inputs = affiliation_inputs(sizes, dtype=dtype, device=kernel_device)
    grad = make_tensor(2, 9, 6, 7, dtype=dtype, device=kernel_device)
    first, second = (run(inputs, grad, kernel_size=7, border=border) for _ in range(2))
    for what, a, b in zip(RESULTS, first, second, strict=True):
        assert torch.equal(a, b), what


@pytest.mark.parametrize('axis', ['rows', 'columns'])
@pytest.mark.parametrize('spoiled', range(4), ids=[*NAMES, 'grad'])
def test_infinity_stays_near(spoiled, axis, kernel_device):
    size = (48, 2) if axis == 'rows' else (2, 48)
    inputs = affiliation_inputs(Sizes(1, 3, 4, size, size), device=kernel_device)
    tensors = [*inputs, make_tensor(1, 4, *size, device=kernel_device)]
    clean = run(tensors[:3], tensors[3], kernel_size=3)
    tensors[spoiled][0, 1, 0, 0] = torch.inf
    got = run(tensors[:3], tensors[3], kernel_size=3)
    for what, a, b in zip(RESULTS, clean, got, strict=True):
        far = [x[:, :, 32:] if axis == 'rows' else x[..., 32:] for x in (a, b)]
        assert far[0].isfinite().all()
        assert torch.equal(*far), what


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_backends_agree(sizes, kernel_device):
    inputs = affiliation_inputs(sizes, device=kernel_device)
    results = []
    for name in ('triton', 'torch'):
        with backend(name):
            results.append(point_affiliation(*inputs))
    assert_close_to_reference(*results)
