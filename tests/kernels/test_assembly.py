import pytest
import torch
from testing_utils import (
    KERNEL_DTYPES,
    LAYOUTS,
    SIZES,
    Sizes,
    assembly_inputs,
    assert_close_to_reference,
    check_against_reference,
    forward_and_gradients,
    make_tensor,
)

from sapa_mm.ops import assemble, backend, reference

pytestmark = pytest.mark.usefixtures('poisoned_memory')

NAMES = ('weights', 'value')
RESULTS = ('output', *(f'gradient of {name}' for name in NAMES))
SMALL = Sizes(1, 1, 6, (4, 5), (8, 9))


def check(inputs, kernel_size, **kwargs):
    """Forward and gradients of the kernels against the reference."""
    with backend('triton'):
        check_against_reference(
            assemble, reference.assemble, inputs, NAMES, kernel_size=kernel_size, **kwargs
        )


def run(inputs, grad, **kwargs):
    with backend('triton'):
        return forward_and_gradients(assemble, inputs, grad, **kwargs)


@pytest.mark.parametrize('ratio', range(1, 9))
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7, 9])
def test_window_and_ratio(kernel_size, ratio, kernel_device):
    low = (3, 4) if ratio < 3 else (2, 1) if ratio % 2 else (1, 2)
    sizes = Sizes(2, 1, 5, low, (ratio * low[0], ratio * low[1]))
    check(assembly_inputs(sizes, kernel_size, device=kernel_device), kernel_size)


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('groups', [1, 2, 3, 6])
def test_groups(groups, dtype, kernel_device):
    inputs = assembly_inputs(SMALL, 3, groups, dtype=dtype, device=kernel_device)
    check(inputs, 3, groups=groups)


def test_groups_are_blocks_of_channels(kernel_device):
    """Each group's weights see its own block of channels, and no other."""
    inputs = assembly_inputs(SMALL, 3, 3, device=kernel_device)
    with backend('triton'):
        out = assemble(*inputs, kernel_size=3, groups=3)
        blocks = [
            assemble(weights, value, kernel_size=3)
            for weights, value in zip(*(tensor.chunk(3, 1) for tensor in inputs), strict=True)
        ]
    torch.testing.assert_close(out, torch.cat(blocks, 1))


@pytest.mark.parametrize('low', [(4, 4), (8, 8), (5, 9), (17, 3), (3, 16)], ids=str)
def test_edges_of_tiles(low, kernel_device):
    """Maps that end with a tile, and one pixel before or behind its end."""
    check(assembly_inputs(Sizes(1, 1, 6, low, low), 5, device=kernel_device), 5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, dtype, kernel_device):
    inputs = assembly_inputs(SMALL, 3, 2, dtype=dtype, layout=layout, device=kernel_device)
    other = assembly_inputs(SMALL, 3, 2, dtype=dtype, device=kernel_device)
    check(inputs, 3, groups=2, grad_layout=layout)
    check((inputs[0], other[1]), 3, groups=2)
    check((other[0], inputs[1]), 3, groups=2)
    check(other, 3, groups=2, grad_layout=layout)


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize(
    ('layout', 'memory_format'),
    [('contiguous', torch.contiguous_format), ('channels_last', torch.channels_last)],
)
def test_memory_format_is_kept(layout, memory_format, groups, kernel_device):
    inputs = assembly_inputs(SMALL, 3, groups, layout=layout, device=kernel_device)
    for grad_layout in ('contiguous', 'channels_last'):
        grad = make_tensor(1, 6, 8, 9, layout=grad_layout, device=kernel_device)
        results = run(inputs, grad, kernel_size=3, groups=groups)
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
    for kernel_size in (5, 9):
        inputs = assembly_inputs(Sizes(2, 1, 4, low, high), kernel_size, device=kernel_device)
        check(inputs, kernel_size)


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(('c', 'groups'), [(1, 1), (300, 1), (65, 1), (300, 2)])
def test_channels(c, groups, dtype, kernel_device):
    sizes = Sizes(1, 1, c, (3, 5), (6, 9))
    inputs = assembly_inputs(sizes, 3, groups, dtype=dtype, device=kernel_device)
    check(inputs, 3, groups=groups)


@pytest.mark.parametrize('position', range(9))
def test_one_position_shifts(position, kernel_device):
    """All weight on one window position moves the map against that position's offset."""
    dy, dx = position // 3 - 1, position % 3 - 1
    weights = torch.zeros(1, 9, 5, 6, device=kernel_device)
    weights[:, position] = 2.0
    value = make_tensor(1, 4, 5, 6, device=kernel_device)
    expected = torch.zeros_like(value)
    for i in range(5):
        for j in range(6):
            if 0 <= i + dy < 5 and 0 <= j + dx < 6:
                expected[:, :, i, j] = 2 * value[:, :, i + dy, j + dx]
    with backend('triton'):
        torch.testing.assert_close(assemble(weights, value, kernel_size=3), expected)


@pytest.mark.parametrize(('low', 'high'), [(17, 33), (14, 46), (8, 9), (5, 20), (20, 50)])
def test_one_position_of_a_window_of_one_is_the_parent(low, high, kernel_device):
    value = torch.arange(low, dtype=torch.float32, device=kernel_device)
    weights = torch.ones(1, 1, high, 2, device=kernel_device)
    with backend('triton'):
        out = assemble(weights, value[None, None, :, None], kernel_size=1)
    assert out[0, 0, :, 1].tolist() == [i * low // high for i in range(high)]


def test_sums_in_more_than_fp16(kernel_device):
    """Terms of 60000 overflow fp16 before they cancel, but not fp32."""
    weights = torch.tensor([250.0] * 4 + [1.0] + [-250.0] * 4, device=kernel_device).half()
    weights = weights[None, :, None, None].expand(1, 9, 8, 8)
    value = torch.full((1, 3, 4, 4), 240.0, dtype=torch.float16, device=kernel_device)
    grad = torch.full((1, 3, 8, 8), 240.0, dtype=torch.float16, device=kernel_device)
    out, grad_weights, grad_value = run((weights, value), grad, kernel_size=3)
    assert out[:, :, 2:-2, 2:-2].eq(240).all()
    # Each low-resolution pixel has 4 output pixels at every window position.
    assert grad_value[:, :, 1:-1, 1:-1].eq(4 * 240).all()
    # 3 * 240 * 240 is beyond fp16.
    assert grad_weights[:, :, 2:-2, 2:-2].isinf().all()


def test_gradient_of_a_sum(kernel_device):
    """Autograd expands the gradient of a sum from one number."""
    inputs = assembly_inputs(SMALL, 5, device=kernel_device)
    grad = torch.ones(1, device=kernel_device).expand(1, 6, 8, 9)
    actual = run(inputs, grad)
    expected = forward_and_gradients(
        reference.assemble, [tensor.double().cpu() for tensor in inputs], grad.double().cpu()
    )
    for what, got, correct in zip(RESULTS, actual, expected, strict=True):
        assert_close_to_reference(got, correct, margin=(4, 4), what=what)


@pytest.mark.parametrize('wanted', [0, 1])
def test_only_one_input_needs_a_gradient(wanted, kernel_device):
    inputs = assembly_inputs(SMALL, 5, device=kernel_device)
    grad = make_tensor(1, 6, 8, 9, device=kernel_device)
    _, *expected = run(inputs, grad)
    inputs[wanted].requires_grad_()
    with backend('triton'):
        out = assemble(*inputs)
    (got,) = torch.autograd.grad(out, inputs[wanted], grad)
    torch.testing.assert_close(got, expected[wanted])


def test_inputs_are_not_written_to(kernel_device):
    inputs = assembly_inputs(SMALL, 5, 2, device=kernel_device)
    grad = make_tensor(1, 6, 8, 9, device=kernel_device)
    copies = [tensor.clone() for tensor in (*inputs, grad)]
    run(inputs, grad, groups=2)
    assert all(map(torch.equal, (*inputs, grad), copies))


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('groups', [1, 3])
def test_two_runs_are_bitwise_equal(groups, dtype, kernel_device):
    sizes = Sizes(2, 1, 9, (3, 4), (6, 7))
    inputs = assembly_inputs(sizes, 7, groups, dtype=dtype, device=kernel_device)
    grad = make_tensor(2, 9, 6, 7, dtype=dtype, device=kernel_device)
    first, second = (run(inputs, grad, kernel_size=7, groups=groups) for _ in range(2))
    for what, a, b in zip(RESULTS, first, second, strict=True):
        assert torch.equal(a, b), what


@pytest.mark.parametrize('axis', ['rows', 'columns'])
@pytest.mark.parametrize('spoiled', range(3), ids=[*NAMES, 'grad'])
def test_infinity_stays_near(spoiled, axis, kernel_device):
    size = (48, 2) if axis == 'rows' else (2, 48)
    inputs = assembly_inputs(Sizes(1, 1, 4, size, size), 3, device=kernel_device)
    tensors = [*inputs, make_tensor(1, 4, *size, device=kernel_device)]
    clean = run(tensors[:2], tensors[2], kernel_size=3)
    tensors[spoiled][0, 1, 0, 0] = torch.inf
    got = run(tensors[:2], tensors[2], kernel_size=3)
    for what, a, b in zip(RESULTS, clean, got, strict=True):
        far = [x[:, :, 32:] if axis == 'rows' else x[..., 32:] for x in (a, b)]
        assert far[0].isfinite().all()
        assert torch.equal(*far), what


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_backends_agree(sizes, kernel_device):
    inputs = assembly_inputs(sizes, 5, device=kernel_device)
    results = []
    for name in ('triton', 'torch'):
        with backend(name):
            results.append(assemble(*inputs))
    assert_close_to_reference(*results)
