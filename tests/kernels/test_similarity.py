import pytest
import torch
from testing_utils import (
    KERNEL_DTYPES,
    LAYOUTS,
    SIZES,
    Sizes,
    affiliation_inputs,
    assert_close_to_reference,
    check_against_reference,
    forward_and_gradients,
    make_tensor,
)

from sapa_mm.ops import backend, local_similarity, reference

pytestmark = pytest.mark.usefixtures('poisoned_memory')

NAMES = ('query', 'key')
RESULTS = ('output', *(f'gradient of {name}' for name in NAMES))
SMALL = Sizes(1, 6, 1, (4, 5), (8, 9))


def make_inputs(sizes, **kwargs):
    return affiliation_inputs(sizes, **kwargs)[:2]


def check(inputs, kernel_size=5, **kwargs):
    """Forward and gradients of the kernels against the reference."""
    with backend('triton'):
        check_against_reference(
            local_similarity,
            reference.local_similarity,
            inputs,
            NAMES,
            kernel_size=kernel_size,
            **kwargs,
        )


def run(inputs, grad, **kwargs):
    with backend('triton'):
        return forward_and_gradients(local_similarity, inputs, grad, **kwargs)


def run_reference(inputs, grad, **kwargs):
    exact = [tensor.double().cpu() for tensor in inputs]
    return forward_and_gradients(reference.local_similarity, exact, grad.double().cpu(), **kwargs)


@pytest.mark.parametrize('ratio', range(1, 9))
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7, 9])
def test_window_and_ratio(kernel_size, ratio, kernel_device):
    low = (3, 4) if ratio < 3 else (2, 1) if ratio % 2 else (1, 2)
    sizes = Sizes(2, 5, 1, low, (ratio * low[0], ratio * low[1]))
    check(make_inputs(sizes, device=kernel_device), kernel_size)


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('temperature', [0.07, 1, 3.0])
def test_dtypes_and_temperature(dtype, temperature, kernel_device):
    inputs = make_inputs(SMALL, dtype=dtype, device=kernel_device)
    check(inputs, temperature=temperature)


@pytest.mark.parametrize('low', [(4, 4), (8, 8), (5, 9), (17, 3), (3, 16)], ids=str)
def test_edges_of_tiles(low, kernel_device):
    """Maps that end with a tile, and one pixel before or behind its end."""
    check(make_inputs(Sizes(1, 6, 1, low, low), device=kernel_device))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, dtype, kernel_device):
    inputs = make_inputs(SMALL, dtype=dtype, layout=layout, device=kernel_device)
    other = make_inputs(SMALL, dtype=dtype, device=kernel_device)
    check(inputs, 3, grad_layout=layout)
    check((inputs[0], other[1]), 3)
    check((other[0], inputs[1]), 3)
    check(other, 3, grad_layout=layout)


@pytest.mark.parametrize(
    ('layout', 'memory_format'),
    [('contiguous', torch.contiguous_format), ('channels_last', torch.channels_last)],
)
def test_memory_format_is_kept(layout, memory_format, kernel_device):
    inputs = make_inputs(SMALL, layout=layout, device=kernel_device)
    for grad_layout in ('contiguous', 'channels_last'):
        grad = make_tensor(1, 9, 8, 9, layout=grad_layout, device=kernel_device)
        results = run(inputs, grad, kernel_size=3)
        for what, result in zip(RESULTS, results, strict=True):
            assert result.is_contiguous(memory_format=memory_format), what


@pytest.mark.parametrize(
    ('low', 'high'),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (5, 3)),
        ((3, 2), (3, 5)),
        ((1, 19), (1, 19)),
        ((9, 1), (17, 2)),
    ],
    ids=str,
)
def test_small_and_narrow_maps(low, high, kernel_device):
    inputs = make_inputs(Sizes(2, 5, 1, low, high), device=kernel_device)
    for kernel_size in (5, 9):
        check(inputs, kernel_size)


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('d', [1, 33, 200])
def test_channels(d, dtype, kernel_device):
    inputs = make_inputs(Sizes(1, d, 1, (3, 5), (6, 9)), dtype=dtype, device=kernel_device)
    check(inputs, 3)


def test_positions_are_row_major(kernel_device):
    """Of a key that is set at (1, 3) alone, each query sees it where its window puts it."""
    key = torch.zeros(1, 2, 5, 5, device=kernel_device)
    key[0, :, 1, 3] = torch.tensor([2.0, 3.0])
    query = torch.ones(1, 2, 10, 10, device=kernel_device)
    with backend('triton'):
        scores = local_similarity(query, key, kernel_size=3)
    expected = torch.zeros(9, 5, 5, device=kernel_device)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            expected[3 * (dy + 1) + dx + 1, 1 - dy, 3 - dx] = 5.0
    expected = expected.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(scores[0], expected)


def test_score_is_zero_outside(kernel_device):
    ones = torch.ones(1, 2, 7, 7, device=kernel_device)
    with backend('triton'):
        scores = local_similarity(ones, ones)
    # 2 a position inside; the corner's 5x5 window holds 9 of them, an edge's 15, the inside 25.
    count = (scores == 2).sum(dim=1)[0]
    assert (scores == 0).sum(dim=1)[0].equal(25 - count)
    assert count[0, [0, 1, 3]].tolist() == [9, 12, 15]
    assert count[3, [0, 1, 2]].tolist() == [15, 20, 25]


def test_temperature_comes_before_the_rounding_to_fp16(kernel_device):
    """A score beyond fp16's 65504 is within its range once divided."""
    sizes = Sizes(1, 32, 1, (4, 5), (8, 10))
    query, key = make_inputs(sizes, dtype=torch.float16, device=kernel_device)
    inputs = (query * 500, key * 500)
    grad = make_tensor(1, 25, 8, 10, dtype=torch.float16, device=kernel_device)
    actual = run(inputs, grad, temperature=1000.0)
    expected = run_reference(inputs, grad, temperature=1000.0)
    assert expected[0].abs().max() > 2 * 65.504
    for what, got, correct in zip(RESULTS, actual, expected, strict=True):
        assert_close_to_reference(got, correct, margin=(4, 4), what=what)


def test_gradients_of_scores_too_small_for_fp16(kernel_device):
    """Divided by the temperature they vanish in fp16, the gradients of the inputs do not."""
    query, key = make_inputs(SMALL, dtype=torch.float16, device=kernel_device)
    inputs = (query * 16000, key * 16000)
    grad = 1e-2 * make_tensor(1, 25, 8, 9, dtype=torch.float16, device=kernel_device)
    actual = run(inputs, grad, temperature=1e6)
    expected = run_reference(inputs, grad, temperature=1e6)
    for what, got, correct in zip(RESULTS[1:], actual[1:], expected[1:], strict=True):
        assert correct.abs().max() > torch.finfo(torch.float16).tiny
        assert_close_to_reference(got, correct, margin=(4, 4), what=what)


def test_gradient_of_a_sum(kernel_device):
    """Autograd expands the gradient of a sum from one number."""
    inputs = make_inputs(SMALL, device=kernel_device)
    grad = torch.ones(1, device=kernel_device).expand(1, 25, 8, 9)
    actual = run(inputs, grad)
    for what, got, correct in zip(RESULTS, actual, run_reference(inputs, grad), strict=True):
        assert_close_to_reference(got, correct, margin=(4, 4), what=what)


@pytest.mark.parametrize('wanted', [0, 1])
def test_only_one_input_needs_a_gradient(wanted, kernel_device):
    inputs = make_inputs(SMALL, device=kernel_device)
    grad = make_tensor(1, 25, 8, 9, device=kernel_device)
    _, *expected = run(inputs, grad)
    inputs[wanted].requires_grad_()
    with backend('triton'):
        out = local_similarity(*inputs)
    (got,) = torch.autograd.grad(out, inputs[wanted], grad)
    torch.testing.assert_close(got, expected[wanted])


def test_inputs_are_not_written_to(kernel_device):
    inputs = make_inputs(SMALL, device=kernel_device)
    grad = make_tensor(1, 25, 8, 9, device=kernel_device)
    copies = [tensor.clone() for tensor in (*inputs, grad)]
    run(inputs, grad)
    assert all(map(torch.equal, (*inputs, grad), copies))


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
def test_two_runs_are_bitwise_equal(dtype, kernel_device):
    sizes = Sizes(2, 9, 1, (3, 4), (6, 7))
    inputs = make_inputs(sizes, dtype=dtype, device=kernel_device)
    grad = make_tensor(2, 49, 6, 7, dtype=dtype, device=kernel_device)
    first, second = (run(inputs, grad, kernel_size=7) for _ in range(2))
    for what, a, b in zip(RESULTS, first, second, strict=True):
        assert torch.equal(a, b), what


@pytest.mark.parametrize('axis', ['rows', 'columns'])
@pytest.mark.parametrize('spoiled', range(3), ids=[*NAMES, 'grad'])
def test_infinity_stays_near(spoiled, axis, kernel_device):
    size = (48, 2) if axis == 'rows' else (2, 48)
    inputs = make_inputs(Sizes(1, 4, 1, size, size), device=kernel_device)
    tensors = [*inputs, make_tensor(1, 9, *size, device=kernel_device)]
    clean = run(tensors[:2], tensors[2], kernel_size=3)
    tensors[spoiled][0, 1, 0, 0] = torch.inf
    got = run(tensors[:2], tensors[2], kernel_size=3)
    for what, a, b in zip(RESULTS, clean, got, strict=True):
        far = [x[:, :, 32:] if axis == 'rows' else x[..., 32:] for x in (a, b)]
        assert far[0].isfinite().all()
        assert torch.equal(*far), what


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_backends_agree(sizes, kernel_device):
    inputs = make_inputs(sizes, device=kernel_device)
    results = []
    for name in ('triton', 'torch'):
        with backend(name):
            results.append(local_similarity(*inputs))
    assert_close_to_reference(*results)
