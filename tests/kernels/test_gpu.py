"""What only a GPU can show. tests/conftest.py collects this file where there is one."""

import json

import pytest
import torch
from testing_utils import (
    TOLERANCES,
    Sizes,
    affiliation_inputs,
    assembly_inputs,
    assert_close_to_reference,
    check_against_reference,
    forward_and_gradients,
    make_tensor,
)

from sapa_mm.kernels import choices, launch, tuning
from sapa_mm.ops import assemble, backend, local_similarity, point_affiliation, reference

pytestmark = pytest.mark.gpu

SIZES = Sizes(2, 8, 12, (9, 10), (18, 21))


def make_inputs(op, sizes=SIZES, **kwargs):
    if op is assemble:
        return assembly_inputs(sizes, 5, **kwargs)
    inputs = affiliation_inputs(sizes, **kwargs)
    return inputs if op is point_affiliation else inputs[:2]


def make_call(op, dtype=torch.float16, device='cuda'):
    """Inputs, and a gradient for the result."""
    inputs = make_inputs(op, dtype=dtype, device=device)
    channels = 25 if op is local_similarity else SIZES.c
    return inputs, make_tensor(SIZES.n, channels, *SIZES.high, dtype=dtype, device=device)


each_op = pytest.mark.parametrize(
    'op', [point_affiliation, local_similarity, assemble], ids=lambda op: op.__name__
)


def test_when_a_gpu_is_tuned(monkeypatch):
    device = torch.device('cuda')
    assert tuning.autotuning(device)
    monkeypatch.setenv('SAPA_MM_AUTOTUNE', '0')
    assert not tuning.autotuning(device)
    monkeypatch.undo()
    torch.use_deterministic_algorithms(True)
    try:
        assert not tuning.autotuning(device)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_a_tuned_call_is_right(layout, monkeypatch):
    monkeypatch.setattr(launch, '_chosen', {})
    sizes = Sizes(2, 32, 256, (20, 24), (40, 48))
    inputs = make_inputs(
        point_affiliation, sizes, dtype=torch.float16, device='cuda', layout=layout
    )
    check_against_reference(
        point_affiliation,
        reference.point_affiliation,
        inputs,
        ('query', 'key', 'value'),
        kernel_size=5,
    )
    # Forward, and backward of query and key, and of the value.
    assert len(launch._chosen) == 3


def test_what_was_chosen_is_kept_for_the_next_process(monkeypatch, tmp_path):
    monkeypatch.setenv('SAPA_MM_CACHE', str(tmp_path))
    inputs, grad = make_call(point_affiliation)
    chosen = []
    for _ in range(2):
        choices.of_device.cache_clear()
        monkeypatch.setattr(launch, '_chosen', {})
        with backend('triton'):
            forward_and_gradients(point_affiliation, inputs, grad)
        chosen.append(launch._chosen)
        # The second time nothing can be timed.
        monkeypatch.delattr(tuning.triton.testing, 'do_bench', raising=False)
    choices.of_device.cache_clear()
    assert chosen[0] == chosen[1]
    (path,) = tmp_path.glob('*.json')
    assert sorted(json.loads(path.read_text())['choices'].values()) == sorted(chosen[0].values())


@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
def test_compiled_by_inductor(mode):
    convolution = torch.nn.Conv2d(12, 12, 1, device='cuda', dtype=torch.float16)

    def function(query, key, value):
        value = convolution(value.contiguous(memory_format=torch.channels_last))
        return point_affiliation(query * 2, key, value, kernel_size=3).relu()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, mode=mode)
    for _ in range(3):  # warming up, capturing, replaying
        inputs, grad = make_call(point_affiliation)
        actual = [x.clone() for x in forward_and_gradients(compiled, inputs, grad)]
        expected = forward_and_gradients(function, inputs, grad)
        for got, correct in zip(actual, expected, strict=True):
            assert_close_to_reference(got, correct, tolerance=4 * TOLERANCES[torch.float16])


@each_op
def test_cuda_graph(op):
    """A captured forward and backward computes from whatever lies in its inputs."""
    inputs, grad = make_call(op)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with backend('triton'), torch.cuda.stream(stream):
        for _ in range(2):
            forward_and_gradients(op, inputs, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with backend('triton'), torch.cuda.graph(graph):
        captured = forward_and_gradients(op, inputs, grad)
    for _ in range(2):
        new_inputs, new_grad = make_call(op)
        for old, new in zip((*inputs, grad), (*new_inputs, new_grad), strict=True):
            old.copy_(new)
        graph.replay()
        with backend('triton'):
            expected = forward_and_gradients(op, new_inputs, new_grad)
        assert all(map(torch.equal, captured, expected))


@each_op
def test_no_synchronization_with_the_host(op):
    inputs, grad = make_call(op)
    with backend('triton'):
        expected = forward_and_gradients(op, inputs, grad)
        torch.cuda.synchronize()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode('error')
        try:
            actual = forward_and_gradients(op, inputs, grad)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    assert all(map(torch.equal, actual, expected))


@each_op
def test_another_stream(op):
    inputs, grad = make_call(op)
    with backend('triton'):
        expected = forward_and_gradients(op, inputs, grad)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Long enough that work on another stream would be done before the inputs are there.
            torch.cuda._sleep(100_000_000)
            copies = [torch.zeros_like(x).copy_(x) for x in (*inputs, grad)]
            actual = forward_and_gradients(op, copies[:-1], copies[-1])
        stream.synchronize()
    assert all(map(torch.equal, actual, expected))


@each_op
def test_cpu_tensors_are_refused(op):
    with backend('triton'), pytest.raises(RuntimeError, match=r'triton.*GPU.*cpu'):
        op(*make_inputs(op))


def tf32_tolerance(op, inputs, exact) -> float:
    """How far TF32 may take a result from the exact one, relative to its largest value.

    TF32 keeps 11 bits, of which hardware may cut the rest off: an operand is off by up to u = 2^-10
    of it, an inner product by up to e = 2 u sum |q k|. A softmax turns that absolute error of its
    scores into a relative one of the weights, of up to exp(2 e) - 1, since the sum that they are
    divided by is off as well; the products with the values add 2 u. It is a property of the
    numbers and not of a kernel: with scores of unit size and D = 8 it is a few percent.
    """
    u = 2.0**-10
    if op is not point_affiliation:
        # One product: against the largest value of its result.
        low = reference.local_similarity if op is local_similarity else reference.assemble
        magnitude = low(*(x.double().abs() for x in inputs), kernel_size=5).max()
        return 2 * u * (magnitude / exact.abs().max()).item()
    query, key, value = (x.double().abs() for x in inputs)
    scores = 2 * u * reference.local_similarity(query, key, kernel_size=5).max()
    weights = torch.expm1(2 * scores) + 2 * u
    return (weights * value.max() / exact.abs().max()).item()


@each_op
def test_tf32_where_the_precision_allows_it(op):
    """With 'high' products are as exact as TF32 is, with 'highest' they are exact."""
    inputs, grad = make_call(op, torch.float32)
    with backend('torch'):
        exact = forward_and_gradients(op, [tensor.double() for tensor in inputs], grad.double())
    tf32 = tf32_tolerance(op, inputs, exact[0])
    assert tf32 < 0.1, 'there is nothing to see'
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ('highest', 'high'):
            torch.set_float32_matmul_precision(precision)
            with backend('triton'):
                actual = forward_and_gradients(op, inputs, grad)
            for i, (got, expected) in enumerate(zip(actual, exact, strict=True)):
                # A gradient has two more such products in a row.
                tolerance = tf32 if i == 0 else 3 * tf32
                if precision == 'highest':
                    tolerance = TOLERANCES[torch.float32]
                assert_close_to_reference(got, expected, tolerance=tolerance)
    finally:
        torch.set_float32_matmul_precision(before)


if torch.cuda.device_count() > 1:

    @each_op
    def test_a_gpu_that_is_not_the_current_one(op):
        inputs, grad = make_call(op)
        with backend('triton'):
            expected = forward_and_gradients(op, inputs, grad)
            elsewhere = [x.to('cuda:1') for x in inputs]
            actual = forward_and_gradients(op, elsewhere, grad.to('cuda:1'))
        assert torch.cuda.current_device() == 0
        for got, correct in zip(actual, expected, strict=True):
            assert got.device.index == 1
            assert torch.equal(got.cpu(), correct.cpu())


@pytest.fixture
def memory():
    """Gives what a test took back to the device."""
    yield
    torch.cuda.empty_cache()


def random_half(*shape):
    # In place and on the GPU: a float64 copy of it would not fit.
    return torch.empty(shape, dtype=torch.float16, device='cuda').normal_()


FREE_BYTES = torch.cuda.mem_get_info()[0]

if FREE_BYTES > 40 * 2**30:

    @pytest.mark.usefixtures('memory')
    def test_more_than_2_to_the_31_elements_over_the_batch():
        """The last images equal the same images alone."""
        n, size = 33_000, (16, 16)
        query, key = (random_half(n, 4, *size) for _ in range(2))
        value, grad = (random_half(n, 256, *size) for _ in range(2))
        assert value.numel() > 2**31
        with backend('triton'):
            actual = forward_and_gradients(point_affiliation, (query, key, value), grad)
            last = [tensor[-2:].clone() for tensor in (query, key, value, grad)]
            expected = forward_and_gradients(point_affiliation, last[:3], last[3])
        for got, correct in zip(actual, expected, strict=True):
            assert_close_to_reference(got[-2:], correct)


if FREE_BYTES > 52 * 2**30:

    @pytest.mark.usefixtures('memory')
    def test_more_than_2_to_the_31_elements_in_an_image():
        """The last corner equals that of a crop, but for what the crop cut off."""
        size, crop, cut = (16_400, 16_400), 64, 8
        query, key = (random_half(1, 2, *size) for _ in range(2))
        value, grad = (random_half(1, 8, *size) for _ in range(2))
        assert value.numel() > 2**31
        with backend('triton'):
            actual = forward_and_gradients(point_affiliation, (query, key, value), grad)
            corner = [x[..., -crop:, -crop:].clone() for x in (query, key, value, grad)]
            expected = forward_and_gradients(point_affiliation, corner[:3], corner[3])
        for got, correct in zip(actual, expected, strict=True):
            got = got[..., -crop:, -crop:][..., cut:, cut:]
            assert_close_to_reference(got, correct[..., cut:, cut:])
