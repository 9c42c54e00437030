import pytest
import torch
import torch.nn.functional as F
from testing_utils import (
    COMPILED_SIZES,
    DTYPES,
    LAYOUTS,
    SIZES,
    TOLERANCES,
    Sizes,
    assembly_inputs,
    assert_close_to_reference,
    check_against_reference,
    forward_and_gradients,
    make_tensor,
)

from sapa_mm.ops import assemble, backend, reference

pytestmark = pytest.mark.usefixtures('poisoned_memory')

SIZE = Sizes(2, 6, 5, (7, 9), (14, 18))


def check(inputs, **kwargs):
    check_against_reference(assemble, reference.assemble, inputs, ('weights', 'value'), **kwargs)


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_sizes(sizes, kernel_size, device):
    check(assembly_inputs(sizes, kernel_size, device=device), kernel_size=kernel_size)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('kernel_size', [3, 5])
def test_dtypes(dtype, kernel_size, device):
    check(assembly_inputs(SIZE, kernel_size, dtype=dtype, device=device), kernel_size=kernel_size)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_share_of_the_window_inside_the_image(dtype, device):
    """Equal weights and value 1 give the share of the 5x5 window that lies inside."""
    weights = torch.full((1, 25, 14, 14), 1 / 25, dtype=dtype, device=device)
    out = assemble(weights, torch.ones(1, 3, 7, 7, dtype=dtype, device=device))[0, 1]
    shares = {(0, 0): 0.36, (13, 0): 0.36, (0, 6): 0.60, (6, 13): 0.60, (2, 6): 0.80, (4, 4): 1.0}
    for (row, col), share in shares.items():
        assert out[row, col].item() == pytest.approx(share, rel=TOLERANCES[dtype]), (row, col)


@pytest.mark.parametrize('position', range(9))
def test_one_position_shifts(position, device):
    """All weight on one window position moves the map against that position's offset."""
    dy, dx = position // 3 - 1, position % 3 - 1
    weights = torch.zeros(1, 9, 5, 6, device=device)
    weights[:, position] = 2.0
    value = make_tensor(1, 4, 5, 6, device=device)
    expected = torch.zeros_like(value)
    for i in range(5):
        for j in range(6):
            if 0 <= i + dy < 5 and 0 <= j + dx < 6:
                expected[:, :, i, j] = 2 * value[:, :, i + dy, j + dx]
    torch.testing.assert_close(assemble(weights, value, kernel_size=3), expected)


@pytest.mark.parametrize(('low', 'high'), [(17, 33), (14, 46), (8, 9), (5, 20), (20, 50)])
def test_one_position_of_a_window_of_one_is_the_parent(low, high, device):
    value = torch.arange(low, dtype=torch.float64, device=device)
    weights = torch.ones(1, 1, high, 2, dtype=torch.float64, device=device)
    out = assemble(weights, value[None, None, :, None], kernel_size=1)
    assert out[0, 0, :, 1].tolist() == [i * low // high for i in range(high)]


def test_defaults():
    inputs = assembly_inputs(SIZE, 5, dtype=torch.float64)
    explicit = reference.assemble(*inputs, kernel_size=5)
    torch.testing.assert_close(assemble(*inputs), explicit)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('groups', [2, 3, 6])
def test_groups(groups, layout, device):
    inputs = (
        make_tensor(2, groups * 9, 13, 18, layout=layout, device=device),
        make_tensor(2, 6, 7, 9, layout=layout, device=device),
    )
    check(inputs, kernel_size=3, groups=groups)


def test_every_group_is_assembled_by_itself(device):
    weights = make_tensor(2, 3 * 9, 14, 18, device=device)
    value = make_tensor(2, 6, 7, 9, layout='channels_last', device=device)
    out = assemble(weights, value, kernel_size=3, groups=3)
    assert out.is_contiguous(memory_format=torch.channels_last)
    parts = zip(weights.chunk(3, dim=1), value.chunk(3, dim=1), strict=True)
    expected = torch.cat([assemble(w, v, kernel_size=3) for w, v in parts], dim=1)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('wanted', [0, 1])
def test_only_one_input_needs_a_gradient(wanted, device):
    inputs = assembly_inputs(SIZE, 5, dtype=torch.float64, device=device)
    grad = make_tensor(2, 5, 14, 18, dtype=torch.float64, device=device)
    _, *expected = forward_and_gradients(reference.assemble, inputs, grad)
    inputs[wanted].requires_grad_()
    (got,) = torch.autograd.grad(assemble(*inputs), inputs[wanted], grad)
    torch.testing.assert_close(got, expected[wanted])


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_gradcheck(kernel_size):
    inputs = assembly_inputs(Sizes(1, 2, 2, (2, 3), (3, 5)), kernel_size, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *x: assemble(*x, kernel_size=kernel_size), inputs)


def test_opcheck(device):
    for layout in ('contiguous', 'channels_last'):
        inputs = assembly_inputs(Sizes(1, 3, 4, (3, 4), (5, 7)), 3, layout=layout, device=device)
        inputs = [tensor.requires_grad_() for tensor in inputs]
        torch.library.opcheck(torch.ops.sapa_mm.assemble.default, (*inputs, 3))
        weights = torch.cat([inputs[0], inputs[0]], dim=1).detach().requires_grad_()
        torch.library.opcheck(torch.ops.sapa_mm.assemble.default, (weights, inputs[1], 3, 2))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_opcheck_of_groups_backward(layout, device):
    """The gradients lie in memory as those of the fake kernel, which a compiled program expects."""
    grad, weights, value = (
        make_tensor(2, channels, *size, layout=layout, device=device)
        for channels, size in ((4, (6, 8)), (18, (6, 8)), (4, (3, 4)))
    )
    arguments = (grad, weights, value, 3, 2, [True, True])
    torch.library.opcheck(
        torch.ops.sapa_mm.assemble_backward.default,
        arguments,
        test_utils=('test_schema', 'test_faketensor'),
    )


@pytest.mark.parametrize('compiler', ['aot_eager', 'inductor'])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile(compiler, device):
    def function(weights, value):
        return F.relu(assemble(weights.softmax(dim=1), value, kernel_size=3)) + 1

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=compiler, fullgraph=True, dynamic=True)
    for sizes in COMPILED_SIZES:
        inputs = assembly_inputs(sizes, 3, device=device)
        grad = make_tensor(sizes.n, sizes.c, *sizes.high, device=device)
        actual = forward_and_gradients(compiled, inputs, grad)
        expected = forward_and_gradients(function, inputs, grad)
        for got, exact in zip(actual, expected, strict=True):
            assert_close_to_reference(got, exact, tolerance=1e-6)


def test_sums_in_more_than_fp16(device):
    """Terms of 60000 overflow fp16 before they cancel, but not fp32."""
    weights = torch.tensor([250.0] * 4 + [1.0] + [-250.0] * 4, device=device).half()
    weights = weights[None, :, None, None].expand(1, 9, 8, 8)
    value = torch.full((1, 3, 4, 4), 240.0, dtype=torch.float16, device=device)
    interior = assemble(weights, value, kernel_size=3)[:, :, 2:-2, 2:-2]
    assert interior.eq(240).all()


@pytest.mark.parametrize('dtypes', [('float32', 'float32'), ('float32', 'bfloat16')], ids=str)
def test_autocast(dtypes, device):
    inputs = [
        tensor.to(getattr(torch, dtype))
        for tensor, dtype in zip(assembly_inputs(SIZE, 5, device=device), dtypes, strict=True)
    ]
    grad = make_tensor(2, 5, 14, 18, device=device)
    with torch.autocast(device, torch.bfloat16):
        actual = forward_and_gradients(assemble, inputs, grad)
    assert [tensor.dtype for tensor in actual] == [torch.bfloat16, *(x.dtype for x in inputs)]
    expected = forward_and_gradients(
        reference.assemble, [tensor.double() for tensor in inputs], grad.double()
    )
    for what, got, exact in zip(('output', 'weights', 'value'), actual, expected, strict=True):
        assert_close_to_reference(got, exact, tolerance=TOLERANCES[torch.bfloat16], what=what)


def test_backend_torch(device):
    inputs = assembly_inputs(SIZE, 5, device=device)
    with backend('torch'):
        check(inputs, kernel_size=5)
