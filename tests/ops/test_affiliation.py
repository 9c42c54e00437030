import random

import pytest
import torch
import torch.nn.functional as F
from testing_utils import (
    BORDERS,
    COMPILED_SIZES,
    DTYPES,
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

from sapa_mm.ops import assemble, backend, local_similarity, point_affiliation, reference

pytestmark = pytest.mark.usefixtures('poisoned_memory')

NAMES = ('query', 'key', 'value')


def check(inputs, **kwargs):
    # All positions are one pixel: gradients of the normalized weights cancel to about zero.
    cancels = kwargs['kernel_size'] == 1 or inputs[1].shape[2:] == (1, 1)
    check_against_reference(
        point_affiliation,
        reference.point_affiliation,
        inputs,
        NAMES,
        floor=float(cancels),
        **kwargs,
    )


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_smoke(sizes, dtype, device):
    out = point_affiliation(*affiliation_inputs(sizes, dtype=dtype, device=device))
    assert out.shape == (sizes.n, sizes.c, *sizes.high)
    assert (out.dtype, out.device.type) == (dtype, device)
    assert out.isfinite().all()


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_sizes(sizes, kernel_size, border, device):
    inputs = affiliation_inputs(sizes, device=device)
    check(inputs, kernel_size=kernel_size, border=border)


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_normalizations(normalization, border, kernel_size, device):
    # relu(s) / (relu(s) + eps) of a single small score is ill-conditioned.
    dtype = torch.float64 if kernel_size == 1 else torch.float32
    inputs = affiliation_inputs(Sizes(2, 6, 5, (7, 8), (15, 13)), dtype=dtype, device=device)
    check(inputs, kernel_size=kernel_size, normalization=normalization, border=border)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_dtypes(dtype, normalization, border, device):
    inputs = affiliation_inputs(Sizes(2, 8, 12, (7, 9), (14, 18)), dtype=dtype, device=device)
    check(inputs, kernel_size=5, normalization=normalization, border=border)


@pytest.mark.parametrize('temperature', [0.25, 3, 0.07])
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_temperature(temperature, normalization, device):
    inputs = affiliation_inputs(SIZES[1], dtype=torch.float64, device=device)
    check(inputs, kernel_size=3, normalization=normalization, temperature=temperature)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('ratio', [1, 2])
def test_share_of_the_window_inside_the_image(ratio, dtype, device):
    """Equal scores and value 1 give the share of the 5x5 window that lies inside."""
    size = 7 * ratio
    key = torch.zeros(1, 4, 7, 7, dtype=dtype, device=device)
    query = make_tensor(1, 4, size, size, dtype=dtype, device=device)
    value = torch.ones(1, 3, 7, 7, dtype=dtype, device=device)
    out = point_affiliation(query, key, value, kernel_size=5)[0, 0, ::ratio, ::ratio]
    expected = {(0, 0): 0.36, (0, 3): 0.60, (6, 3): 0.60, (6, 6): 0.36, (1, 3): 0.80}
    expected |= {(3, 5): 0.80, (0, 1): 0.48, (1, 1): 0.64, (2, 2): 1.0, (3, 4): 1.0}
    for (row, col), share in expected.items():
        assert out[row, col].item() == pytest.approx(share, rel=TOLERANCES[dtype]), (row, col)
    for border in ('mask', 'replicate'):
        inside = point_affiliation(query, key, value, kernel_size=5, border=border)
        torch.testing.assert_close(inside, torch.ones_like(inside))


def test_by_hand(device):
    # softmax weights 1, 2, 3, 1 inside and five times 1 outside
    key = torch.tensor([[1.0, 2.0], [3.0, 1.0]], device=device).log()[None, None]
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)[None, None]
    query = torch.ones(1, 1, 4, 4, device=device)
    for border, expected in (('zero', 18 / 12), ('mask', 18 / 7)):
        out = point_affiliation(query, key, value, kernel_size=3, border=border)
        torch.testing.assert_close(out, torch.full_like(out, expected))
    out = point_affiliation(query, key, value, kernel_size=3, border='replicate')
    assert out[0, 0, 0, 0].item() == pytest.approx(34 / 15, rel=1e-6)
    assert out[0, 0, 3, 3].item() == pytest.approx((1 + 8 + 18 + 16) / (1 + 4 + 6 + 4), rel=1e-6)


def test_defaults():
    inputs = affiliation_inputs(SIZES[1], dtype=torch.float64)
    explicit = reference.point_affiliation(
        *inputs, kernel_size=5, normalization='softmax', temperature=1.0, border='zero'
    )
    torch.testing.assert_close(point_affiliation(*inputs), explicit)


@pytest.mark.parametrize('border', ['zero', 'mask'])
def test_fused_is_the_composition(border, device):
    query, key, value = affiliation_inputs(SIZES[4], dtype=torch.float64, device=device)
    fused = point_affiliation(query, key, value, temperature=0.5, border=border)
    scores = local_similarity(query, key, temperature=0.5)
    if border == 'mask':
        outside = local_similarity(torch.ones_like(query), torch.ones_like(key)) == 0
        scores = scores.masked_fill(outside, -torch.inf)
    torch.testing.assert_close(fused, assemble(scores.softmax(dim=1), value))


def test_inputs_are_not_written_to(device):
    inputs = affiliation_inputs(SIZES[4], device=device)
    copies = [tensor.clone() for tensor in inputs]
    forward_and_gradients(point_affiliation, inputs, make_tensor(1, 6, 33, 45, device=device))
    assert all(map(torch.equal, inputs, copies))


@pytest.mark.parametrize('wanted', [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_some_inputs_need_a_gradient(wanted, device):
    inputs = affiliation_inputs(SIZES[4], dtype=torch.float64, device=device)
    grad = make_tensor(1, 6, 33, 45, dtype=torch.float64, device=device)
    _, *expected = forward_and_gradients(reference.point_affiliation, inputs, grad)
    for position in wanted:
        inputs[position].requires_grad_()
    out = point_affiliation(*inputs)
    leaves = [inputs[position] for position in wanted]
    for position, got in zip(wanted, torch.autograd.grad(out, leaves, grad), strict=True):
        torch.testing.assert_close(got, expected[position])


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('border', BORDERS)
def test_gradcheck(normalization, border):
    inputs = [
        tensor.requires_grad_()
        for tensor in affiliation_inputs(Sizes(1, 2, 2, (2, 3), (3, 5)), dtype=torch.float64)
    ]

    def function(*tensors):
        return point_affiliation(
            *tensors, kernel_size=3, normalization=normalization, temperature=0.8, border=border
        )

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(('normalization', 'border'), [('softmax', 'zero'), ('relu', 'mask')])
def test_opcheck(normalization, border, device):
    sizes = Sizes(1, 3, 4, (3, 4), (5, 7))
    for layout in ('contiguous', 'channels_last'):
        inputs = affiliation_inputs(sizes, layout=layout, device=device)
        inputs = [tensor.requires_grad_() for tensor in inputs]
        arguments = (*inputs, 3, normalization, 0.5, border)
        torch.library.opcheck(torch.ops.sapa_mm.point_affiliation.default, arguments)


@pytest.mark.parametrize('compiler', ['aot_eager', 'inductor'])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile(compiler, device):
    def function(query, key, value):
        return F.relu(point_affiliation(query * 2, key, value, kernel_size=3)) + 1

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=compiler, fullgraph=True, dynamic=True)
    for sizes in COMPILED_SIZES:
        inputs = affiliation_inputs(sizes, device=device)
        grad = make_tensor(sizes.n, sizes.c, *sizes.high, device=device)
        actual = forward_and_gradients(compiled, inputs, grad)
        expected = forward_and_gradients(function, inputs, grad)
        for got, exact in zip(actual, expected, strict=True):
            assert_close_to_reference(got, exact, tolerance=1e-6)


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_scores_beyond_the_range_of_fp16(normalization, device):
    sizes = Sizes(1, 32, 4, (5, 6), (10, 12))
    query, key, value = affiliation_inputs(sizes, dtype=torch.float16, device=device)
    query, key, value = query * 500, key * 500, value / 1024
    scores = reference.local_similarity(query.double(), key.double())
    assert scores.abs().max() > 2 * 65504
    out, *grads = forward_and_gradients(
        point_affiliation,
        (query, key, value),
        make_tensor(1, 4, 10, 12, device=device) / 1024,
        normalization=normalization,
    )
    expected = reference.point_affiliation(
        query.double(), key.double(), value.double(), normalization=normalization
    )
    assert_close_to_reference(out, expected, margin=(4, 4))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    'dtypes',
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float32, torch.float32),
    ],
    ids=str,
)
def test_autocast(dtypes, device):
    sizes = Sizes(2, 8, 6, (7, 9), (14, 18))
    inputs = [
        tensor.to(dtype)
        for tensor, dtype in zip(affiliation_inputs(sizes, device=device), dtypes, strict=True)
    ]
    grad = make_tensor(2, 6, 14, 18, device=device)
    with torch.autocast(device, torch.bfloat16):
        actual = forward_and_gradients(point_affiliation, inputs, grad)
    assert [tensor.dtype for tensor in actual] == [torch.bfloat16, *dtypes]
    expected = forward_and_gradients(
        reference.point_affiliation, [tensor.double() for tensor in inputs], grad.double()
    )
    for what, got, exact in zip(('output', *NAMES), actual, expected, strict=True):
        assert_close_to_reference(got, exact, tolerance=TOLERANCES[torch.bfloat16], what=what)


def test_backend_torch(device):
    inputs = affiliation_inputs(SIZES[4], device=device)
    with backend('torch'):
        check(inputs, kernel_size=5)
    # The choice ends with the block, also when it is left by an error.
    with pytest.raises(ZeroDivisionError), backend('torch'):
        raise ZeroDivisionError
    check(inputs, kernel_size=5)


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"(?s)(triton.*torch|torch.*triton).*'nonsense'"):
        with backend('nonsense'):
            pass


@pytest.mark.parametrize('seed', range(60))
def test_random_calls(seed, device):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    low = (draw.randint(1, 12), draw.randint(1, 12))
    sizes = Sizes(
        n=draw.randint(1, 3),
        d=draw.randint(2, 20),  # with 1, relu's weights do not depend on the query's size
        c=draw.randint(2, 20),
        low=low,
        high=tuple(draw.randint(size, 4 * size) for size in low),
    )
    dtype, layout = draw.choice(DTYPES), draw.choice(LAYOUTS)
    check(
        affiliation_inputs(sizes, dtype=dtype, layout=layout, device=device),
        kernel_size=draw.choice([3, 5, 7]),
        normalization=draw.choice(NORMALIZATIONS),
        temperature=draw.choice([0.5, 1.0, 2.0]),
        border=draw.choice(BORDERS),
    )
