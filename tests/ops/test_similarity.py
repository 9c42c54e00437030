import pytest
import torch
from testing_utils import (
    COMPILED_SIZES,
    DTYPES,
    SIZES,
    TOLERANCES,
    Sizes,
    affiliation_inputs,
    assert_close_to_reference,
    check_against_reference,
    forward_and_gradients,
    make_tensor,
)

from sapa_mm.ops import backend, local_similarity, reference

pytestmark = pytest.mark.usefixtures('poisoned_memory')

SIZE = Sizes(2, 6, 5, (7, 9), (14, 18))


def make_inputs(sizes, **kwargs):
    return affiliation_inputs(sizes, **kwargs)[:2]


def check(inputs, **kwargs):
    check_against_reference(
        local_similarity, reference.local_similarity, inputs, ('query', 'key'), **kwargs
    )


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_sizes(sizes, kernel_size, device):
    check(make_inputs(sizes, device=device), kernel_size=kernel_size)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('temperature', [0.07, 1, 3.0])
def test_dtypes_and_temperature(dtype, temperature, device):
    inputs = make_inputs(SIZE, dtype=dtype, device=device)
    check(inputs, kernel_size=5, temperature=temperature)


def test_positions_are_row_major(device):
    """Of a key that is set at (1, 3) alone, each query sees it where its window puts it."""
    key = torch.zeros(1, 2, 5, 5, device=device)
    key[0, :, 1, 3] = torch.tensor([2.0, 3.0])
    query = torch.ones(1, 2, 10, 10, device=device)
    scores = local_similarity(query, key, kernel_size=3)
    expected = torch.zeros(9, 5, 5, device=device)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            expected[3 * (dy + 1) + dx + 1, 1 - dy, 3 - dx] = 5.0
    expected = expected.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(scores[0], expected)


def test_score_is_zero_outside(device):
    ones = torch.ones(1, 2, 7, 7, device=device)
    scores = local_similarity(ones, ones)
    # 2 a position inside; the corner's 5x5 window holds 9 of them, an edge's 15, the inside 25.
    count = (scores == 2).sum(dim=1)[0]
    assert (scores == 0).sum(dim=1)[0].equal(25 - count)
    assert count[0, [0, 1, 3]].tolist() == [9, 12, 15]
    assert count[3, [0, 1, 2]].tolist() == [15, 20, 25]


def test_defaults():
    inputs = make_inputs(SIZE, dtype=torch.float64)
    explicit = reference.local_similarity(*inputs, kernel_size=5, temperature=1.0)
    torch.testing.assert_close(local_similarity(*inputs), explicit)


@pytest.mark.parametrize('wanted', [0, 1])
def test_only_one_input_needs_a_gradient(wanted, device):
    inputs = make_inputs(SIZE, dtype=torch.float64, device=device)
    grad = make_tensor(2, 25, 14, 18, dtype=torch.float64, device=device)
    _, *expected = forward_and_gradients(reference.local_similarity, inputs, grad)
    inputs[wanted].requires_grad_()
    (got,) = torch.autograd.grad(local_similarity(*inputs), inputs[wanted], grad)
    torch.testing.assert_close(got, expected[wanted])


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_gradcheck(kernel_size):
    inputs = make_inputs(Sizes(1, 2, 2, (2, 3), (3, 5)), dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def function(*tensors):
        return local_similarity(*tensors, kernel_size=kernel_size, temperature=0.8)

    assert torch.autograd.gradcheck(function, inputs)


def test_opcheck(device):
    for layout in ('contiguous', 'channels_last'):
        inputs = make_inputs(Sizes(1, 3, 4, (3, 4), (5, 7)), layout=layout, device=device)
        inputs = [tensor.requires_grad_() for tensor in inputs]
        torch.library.opcheck(torch.ops.sapa_mm.local_similarity.default, (*inputs, 3, 0.5))


@pytest.mark.parametrize('compiler', ['aot_eager', 'inductor'])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile(compiler, device):
    def function(query, key):
        return local_similarity(query * 2, key, kernel_size=3).softmax(dim=1)

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=compiler, fullgraph=True, dynamic=True)
    for sizes in COMPILED_SIZES:
        inputs = make_inputs(sizes, device=device)
        grad = make_tensor(sizes.n, 9, *sizes.high, device=device)
        actual = forward_and_gradients(compiled, inputs, grad)
        expected = forward_and_gradients(function, inputs, grad)
        for got, exact in zip(actual, expected, strict=True):
            assert_close_to_reference(got, exact, tolerance=1e-6)


def test_temperature_comes_before_the_rounding_to_fp16(device):
    """A score beyond fp16's 65504 is within its range once divided."""
    query, key = make_inputs(Sizes(1, 32, 1, (5, 6), (10, 12)), dtype=torch.float16, device=device)
    query, key = query * 500, key * 500
    expected = reference.local_similarity(query.double(), key.double(), temperature=1000.0)
    assert expected.abs().max() > 2 * 65.504
    scores = local_similarity(query, key, temperature=1000.0)
    assert_close_to_reference(scores, expected, margin=(4, 4))


@pytest.mark.parametrize('dtypes', [('float32', 'float32'), ('float32', 'bfloat16')], ids=str)
def test_autocast(dtypes, device):
    """Scores stay in float32, as torch's own autocast keeps what feeds a softmax."""
    inputs = [
        tensor.to(getattr(torch, dtype))
        for tensor, dtype in zip(make_inputs(SIZE, device=device), dtypes, strict=True)
    ]
    grad = make_tensor(2, 25, 14, 18, device=device)
    with torch.autocast(device, torch.bfloat16):
        actual = forward_and_gradients(local_similarity, inputs, grad)
    assert [tensor.dtype for tensor in actual] == [torch.float32, *(x.dtype for x in inputs)]
    expected = forward_and_gradients(
        reference.local_similarity, [tensor.double() for tensor in inputs], grad.double()
    )
    for what, got, exact in zip(('output', 'query', 'key'), actual, expected, strict=True):
        assert_close_to_reference(got, exact, tolerance=TOLERANCES[torch.bfloat16], what=what)


def test_backend_torch(device):
    inputs = make_inputs(SIZE, device=device)
    with backend('torch'):
        check(inputs, kernel_size=5)
