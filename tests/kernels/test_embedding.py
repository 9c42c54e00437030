import pytest
import torch
from testing_embedding import (
    ALL,
    CASES,
    NAMES,
    PARAMETERS,
    Case,
    assert_close,
    check_case,
    exact_copies,
    results,
)
from testing_utils import KERNEL_DTYPES, LAYOUTS, make_tensor

from sapa_mm.kernels import embedding, embedding_backward, embedding_plan, flat, launch
from sapa_mm.ops import backend, embed, reference

pytestmark = pytest.mark.usefixtures('poisoned_memory')

#: Float64 goes to the PyTorch backend by rule.
KERNEL_CASES = [case for case in CASES if case.dtype in KERNEL_DTYPES]
EVERYTHING = Case('everything', n=2, c=21, d=9, tensors=ALL)
#: More channels than a block has, and an embedding of more than one.
WIDE = Case('wide', n=2, c=600, d=70, high=(5, 7), low=(2, 3), tensors=ALL)


@pytest.mark.parametrize('case', KERNEL_CASES, ids=str)
def test_case(case, kernel_device):
    with backend('triton'):
        check_case(case, kernel_device)


def poisoned(*shape: int, memory_format=torch.contiguous_format, **options) -> torch.Tensor:
    return torch.full(shape, torch.nan, **options).contiguous(memory_format=memory_format)


def run_kernels(case: Case, tensors: dict, grad: torch.Tensor, out_format) -> dict:
    """Embedding and gradients by the kernels themselves, as `testing_embedding.results` has them.

    All that they write to is NaN before.
    """
    (n, c, *size), device = tensors['x'].shape, tensors['x'].device
    d = case.d if 'weight' in tensors else c
    inputs = [tensors.get(name) for name in NAMES]
    statistics = poisoned(2, n, *size, device=device) if case.normalize else None
    out = poisoned(n, d, *size, dtype=case.dtype, device=device, memory_format=out_format)
    embedding.forward(*inputs, out, statistics, case.eps)
    grads = {name: torch.full_like(x, torch.nan) for name, x in tensors.items()}
    x, *others = inputs
    embedding_backward.backward(grad, x, statistics, *others, out, grads)
    return {'': out, **grads}


def check_kernels(case: Case, device: str, out_format=torch.channels_last) -> None:
    tensors = case.make(device)
    exact, options = exact_copies(tensors), dict(normalize=case.normalize, eps=case.eps)
    shape = reference.embed(**exact, **options).shape
    grad = make_tensor(*shape, dtype=case.dtype, layout=case.grad_layout, device=device)
    expected = results(reference.embed, exact, grad.double().cpu(), **options)
    for name, got in run_kernels(case, tensors, grad, out_format).items():
        # Gradients of float32 parameters are no more exact than the products.
        assert_close(got, expected[name], what=f'gradient of {name}' if name else 'output')


@pytest.mark.parametrize('grad_layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('out_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    'tensors', [ALL, PARAMETERS, ('weight',), ('norm_weight', 'norm_bias'), ()], ids=len
)
def test_any_layout_of_map_and_embedding(tensors, out_format, layout, grad_layout, kernel_device):
    """On a GPU the embedding of planes (NCHW) has its channels innermost."""
    case = EVERYTHING._replace(tensors=tensors, layout=layout, grad_layout=grad_layout)
    check_kernels(case, kernel_device, out_format)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('tensors', [ALL, ('norm_weight', 'norm_bias')], ids=len)
def test_more_channels_than_a_block(tensors, dtype, layout, kernel_device):
    case = WIDE._replace(tensors=tensors, dtype=dtype, parameter_dtype=dtype, layout=layout)
    check_kernels(case, kernel_device)


@pytest.mark.parametrize('tensors', [('weight', 'bias'), ('weight', 'gate', 'addend')], ids=len)
def test_more_channels_than_a_block_without_a_norm(tensors, kernel_device):
    check_kernels(WIDE._replace(tensors=tensors, normalize=False), kernel_device)


def record_backward(case: Case, wanted: tuple[str, ...]) -> list[launch.Launch]:
    """The launches of a backward that writes some gradients, for tensors that hold nothing."""
    tensors = {name: x.to('meta') for name, x in case.make().items()}
    x, *others = (tensors.get(name) for name in NAMES)
    grads = {name: torch.empty_like(tensors[name]) for name in wanted}
    width = case.d if 'weight' in tensors else case.c
    out = x.new_empty(case.n, width, *case.high)
    statistics = x.new_empty(2, case.n, *case.high, dtype=torch.float32)
    with launch.record(launch.INTERPRETER) as launches:
        embedding_backward.backward(out, x, statistics, *others, out, grads)
    return launches


@pytest.mark.parametrize(
    ('wanted', 'kernels'),
    [
        ((), []),
        (('x',), ['embedding_bwd_kernel']),
        *(
            ((name,), ['embedding_sums_kernel', 'embedding_parameters_kernel'])
            for name in PARAMETERS
        ),
        (('gate',), ['embedding_cells_kernel']),
        (('addend',), ['embedding_cells_kernel']),
        (('gate', 'addend'), ['embedding_cells_kernel']),
        (
            NAMES,
            [
                'embedding_bwd_kernel',
                'embedding_sums_kernel',
                'embedding_parameters_kernel',
                'embedding_cells_kernel',
            ],
        ),
    ],
    ids=str,
)
def test_gradients_not_asked_for_launch_nothing(wanted, kernels):
    launches = record_backward(EVERYTHING, wanted)
    assert [item.kernel.__name__ for item in launches] == kernels
    given = {
        name.removeprefix('grad_').removesuffix('_ptr')
        for item in launches
        for name, x in item.arguments.items()
        if name.startswith('grad_') and name != 'grad_sums_ptr' and x is not None
    }
    assert given == set(wanted)


@pytest.mark.parametrize('wanted', NAMES)
def test_one_gradient_alone_is_that_among_others(wanted, kernel_device):
    tensors = EVERYTHING.make(kernel_device)
    grad = make_tensor(2, 9, *EVERYTHING.high, device=kernel_device)
    with backend('triton'):
        expected = results(embed, tensors, grad)[wanted]
        tensors[wanted].requires_grad_()
        (got,) = torch.autograd.grad(embed(**tensors), tensors[wanted], grad)
    assert torch.equal(got, expected)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', [EVERYTHING, EVERYTHING._replace(tensors=('norm_weight',))])
def test_offsets_of_64_bits_give_the_same(case, layout, kernel_device, monkeypatch):
    case = case._replace(layout=layout)
    tensors = case.make(kernel_device)
    width = case.d if 'weight' in tensors else case.c
    grad = make_tensor(case.n, width, *case.high, device=kernel_device)
    narrow = run_kernels(case, tensors, grad, torch.channels_last)
    asked = []
    monkeypatch.setattr(launch, '_calls', {})  # what is there for these tensors
    monkeypatch.setattr(embedding_plan, 'is_wide', lambda *maps: asked.append(maps) or True)
    wide = run_kernels(case, tensors, grad, torch.channels_last)
    # Of the forward, of the map's gradient, and of the sums for parameters.
    assert len(asked) == 3
    for name, got in wide.items():
        assert torch.equal(got, narrow[name]), name


def test_offsets_are_64_bits_where_an_image_needs_them():
    def make(*shape, stride=None):
        x = torch.empty(shape, device='meta')
        return x if stride is None else torch.empty_strided(shape, stride, device='meta')

    assert not flat.is_wide(make(4, 2**15, 2**8, 2**8), None)  # 2^31 values, but not 2^31 steps
    assert flat.is_wide(make(1, 2**15 + 1, 2**8, 2**8))
    assert not flat.is_wide(make(2**16, 2**10, 2**7, 2**7))  # images are found in 64 bits
    assert flat.is_wide(None, make(1, 2, 2, 2, stride=(1, 2**31, 2, 1)))


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_two_runs_are_bitwise_equal(layout, dtype, kernel_device):
    # The sums have several parts.
    case = Case('', c=33, d=12, high=(25, 42), low=(9, 11), tensors=ALL, dtype=dtype, layout=layout)
    tensors = case.make(kernel_device)
    grad = make_tensor(2, 12, 25, 42, dtype=dtype, device=kernel_device)
    first, second = (run_kernels(case, tensors, grad, torch.channels_last) for _ in range(2))
    for name, got in first.items():
        assert torch.equal(got, second[name]), name


def test_inputs_are_not_written_to(kernel_device):
    tensors = EVERYTHING.make(kernel_device)
    grad = make_tensor(2, 9, *EVERYTHING.high, device=kernel_device)
    copies = {name: x.clone() for name, x in tensors.items()}
    same = grad.clone()
    run_kernels(EVERYTHING, tensors, grad, torch.channels_last)
    assert torch.equal(grad, same)
    for name, x in tensors.items():
        assert torch.equal(x, copies[name]), name


@pytest.mark.parametrize('dtype', KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize('layout', [name for name in LAYOUTS if name != 'channels_last'])
@pytest.mark.parametrize(
    'shape', [(2, 5, 7, 9), (1, 70, 3, 43), (3, 2, 1, 1), (1, 130, 1, 5), (1, 3, 129, 1)], ids=str
)
def test_channels_innermost(shape, layout, dtype, kernel_device):
    x = make_tensor(*shape, dtype=dtype, layout=layout, device=kernel_device)
    copy = x.clone()
    out = flat.channels_innermost(x)
    assert out.stride(1) == 1
    if out is not x:  # An expanded map may have them there already.
        assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, x)
    assert torch.equal(x, copy)


def test_what_has_its_channels_innermost_is_left_alone(kernel_device):
    x = make_tensor(2, 6, 5, 7, layout='channels_last', device=kernel_device)
    for same in (x, x[:, 1:4], x[:, :, ::2, 1:], make_tensor(2, 1, 5, 7, device=kernel_device)):
        assert flat.channels_innermost(same) is same
    sliced = make_tensor(2, 1, 5, 7, layout='sliced', device=kernel_device)
    assert flat.channels_innermost(sliced) is sliced
