import pytest
import torch
from testing_embedding import (
    ALL,
    CASES,
    PARAMETERS,
    Case,
    assert_close,
    check_case,
    exact_copies,
    results,
)
from testing_utils import TOLERANCES, make_tensor
from torch.nn import functional as F

from sapa_mm.ops import backend, embed, reference
from sapa_mm.ops.decompositions import decompositions
from sapa_mm.ops.embedding import _backward, _forward

pytestmark = pytest.mark.usefixtures('poisoned_memory')

EVERYTHING = Case('everything', tensors=ALL, dtype=torch.float64)
BARE = Case('bare', tensors=(), dtype=torch.float64)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_case(case, device):
    check_case(case, device)


def test_is_layer_norm_and_linear(device):
    """PyTorch's own layers are a second witness."""
    case = Case('', c=24, d=8, dtype=torch.float64)
    x, weight, bias, norm_weight, norm_bias = case.make(device).values()
    pixels = F.layer_norm(x.movedim(1, -1), (24,), norm_weight, norm_bias, eps=1e-3)
    expected = F.linear(pixels, weight, bias).movedim(-1, 1)
    out = embed(x, weight, bias, norm_weight=norm_weight, norm_bias=norm_bias, eps=1e-3)
    torch.testing.assert_close(out, expected)


def test_by_hand(device):
    # The mean is 2 and the deviation 1: the normalized pixel is -1, 1.
    x = torch.tensor([1.0, 3.0], device=device).view(1, 2, 1, 1).expand(1, 2, 2, 4)
    weight = torch.tensor([[2.0, 5.0]], device=device)
    bias = torch.tensor([10.0], device=device)
    addend = torch.tensor([[1.0, -1.0]], device=device)[None, None]
    gate = torch.tensor([[0.0, 3.0]], device=device).log()[None, None]
    options = dict(norm_weight=torch.tensor([1.0, 2.0], device=device), eps=1e-12)
    # -2 * 1 + 5 * 2 + 10
    out = embed(x, weight, bias, **options)
    torch.testing.assert_close(out, torch.full_like(out, 18.0))
    out = embed(x, weight, bias, addend=addend, **options)
    row = torch.tensor([19.0, 19.0, 17.0, 17.0], device=device)
    torch.testing.assert_close(out, row.expand(1, 1, 2, 4))
    # The gates are 0 and 3/4.
    out = embed(x, weight, bias, addend=addend, gate=gate, **options)
    row = torch.tensor([1.0, 1.0, 13.25, 13.25], device=device)
    torch.testing.assert_close(out, row.expand(1, 1, 2, 4))


def test_defaults():
    x = BARE.make()['x'] * 1e-2  # so small that eps shows
    explicit = reference.embed(x, normalize=True, eps=1e-5)
    torch.testing.assert_close(embed(x), explicit)


@pytest.mark.parametrize('case', [EVERYTHING, BARE, Case('narrow', d=1)], ids=str)
def test_memory_format(case, device):
    for layout in ('contiguous', 'channels_last', 'sliced', 'transposed', 'expanded'):
        tensors = case._replace(layout=layout).make(device)
        out = embed(**tensors)
        channels_last = layout == 'channels_last' or device == 'cuda'
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert out.is_contiguous(memory_format=memory_format), layout


def test_statistics(device):
    """The operator gives mean and reciprocal deviation too, whose gradient nobody has."""
    tensors = Case('', c=24, mean=3.0).make(device)
    x = tensors['x'].requires_grad_()
    _, statistics = _forward(x, None, None, True, None, None, 1e-3, None, None)
    exact = x.detach().double()
    rstd = (exact.var(1, correction=0) + 1e-3).rsqrt()
    assert statistics.shape == (2, 2, 7, 9)
    assert statistics.dtype == torch.float32
    assert not statistics.requires_grad
    assert_close(statistics[0], exact.mean(1))
    assert_close(statistics[1], rstd)
    weight = tensors['weight']
    _, statistics = _forward(x, weight, None, False, None, None, 1e-3, None, None)
    assert statistics.shape == (0,)


@pytest.mark.parametrize(
    ('case', 'wanted'), [(BARE, 'x'), *((EVERYTHING, name) for name in ('x', *ALL))], ids=str
)
def test_only_one_gradient(case, wanted, device):
    tensors = case.make(device)
    grad = make_tensor(*reference.embed(**exact_copies(tensors)).shape, dtype=torch.float64)
    expected = results(reference.embed, exact_copies(tensors), grad)[wanted]
    leaf = tensors[wanted].requires_grad_()
    (got,) = torch.autograd.grad(embed(**tensors), leaf, grad.to(device))
    torch.testing.assert_close(got.cpu(), expected)


@pytest.mark.parametrize('normalize', [True, False])
def test_gradients_not_asked_for_are_not_computed(normalize, device):
    tensors = Case('', tensors=ALL if normalize else ('weight', 'gate', 'addend')).make(device)
    names = ('weight', 'bias', 'norm_weight', 'norm_bias', 'gate', 'addend')
    weight, bias, norm_weight, norm_bias, gate, addend = (tensors.get(name) for name in names)
    arguments = (weight, bias, normalize, norm_weight, norm_bias, 1e-5, gate, addend)
    out, statistics = _forward(tensors['x'], *arguments)
    for wanted in tensors:
        needs = [name == wanted for name in ('x', *names)]
        found = _backward(out, tensors['x'], statistics, *arguments, out, needs)
        for name, got in zip(('x', *names), found, strict=True):
            expected = tensors[name].shape if name == wanted else (0,)
            assert got.shape == expected, name


@pytest.mark.parametrize(
    'case',
    [
        EVERYTHING._replace(c=3, d=2, n=1, high=(3, 5), low=(2, 3)),
        BARE._replace(c=3, n=1, high=(2, 3)),
        EVERYTHING._replace(normalize=False, tensors=('weight', 'bias', 'gate', 'addend'), n=1),
    ],
    ids=['everything', 'bare', 'not normalized'],
)
def test_gradcheck(case):
    leaves = {name: tensor.requires_grad_() for name, tensor in case.make().items()}

    def function(*values):
        return embed(**dict(zip(leaves, values, strict=True)), normalize=case.normalize)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('tensors', [ALL, ('weight',), ()], ids=str)
def test_opcheck(tensors, layout, device):
    made = Case('', tensors=tensors, layout=layout).make(device)
    made = {name: tensor.requires_grad_() for name, tensor in made.items()}
    *parameters, gate, addend = (made.get(name) for name in ALL)
    weight, bias, *norm = parameters
    arguments = (made['x'], weight, bias, True, *norm, 1e-5, gate, addend)
    torch.library.opcheck(torch.ops.sapa_mm.embed.default, arguments)


def test_opcheck_of_the_backward(device):
    made = EVERYTHING.make(device)
    weight, bias, *norm, gate, addend = (made[name] for name in ALL)
    arguments = (weight, bias, True, *norm, 1e-5, gate, addend)
    out, statistics = _forward(made['x'], *arguments)
    for needs in ([True] * 7, [False, True, False, False, True, False, True]):
        torch.library.opcheck(
            torch.ops.sapa_mm.embed_backward.default,
            (out, made['x'], statistics, *arguments, out, needs),
        )


@pytest.mark.parametrize('compiler', ['aot_eager', 'inductor'])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile(compiler, device):
    def function(x, **tensors):
        return embed(x * 2, **tensors).relu() + 1

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=compiler, fullgraph=True, dynamic=True)
    # All sizes differ, as torch.compile takes equal ones for one and the same.
    for n, high, low in ((2, (14, 17), (7, 8)), (3, (20, 23), (10, 11))):
        case = Case('', n=n, c=6, d=5, high=high, low=low, tensors=ALL)
        tensors = case.make(device)
        grad = make_tensor(n, 5, *high, device=device)
        expected = results(function, tensors, grad)
        for name, got in results(compiled, tensors, grad).items():
            assert_close(got, expected[name], tolerance=1e-6, what=name)


@pytest.mark.parametrize('case', [EVERYTHING, BARE], ids=str)
def test_export_takes_any_sizes(case):
    class Model(torch.nn.Module):
        def forward(self, tensors):
            return embed(**tensors)

    free = torch.export.Dim.DYNAMIC
    tensors = case.make()
    shapes = {
        name: {0: free, 2: free, 3: free} if tensor.dim() == 4 else {}
        for name, tensor in tensors.items()
    }
    program = torch.export.export(Model(), (tensors,), dynamic_shapes=(shapes,), strict=False)
    assert any('sapa_mm.embed' in str(node.target) for node in program.graph.nodes)
    decomposed = program.run_decompositions(decompositions())
    assert not any('sapa_mm' in str(node.target) for node in decomposed.graph.nodes)
    for n, high, low in ((2, (7, 9), (3, 4)), (3, (8, 6), (4, 3)), (1, (13, 31), (5, 8))):
        tensors = case._replace(n=n, high=high, low=low).make()
        expected = reference.embed(**tensors)
        torch.testing.assert_close(program.module()(tensors), expected)
        torch.testing.assert_close(decomposed.module()(tensors), expected)


@pytest.mark.parametrize('parameters', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(parameters, device):
    """The maps are cast, float32 parameters are read as they are."""
    case = Case('', c=24, d=8, tensors=ALL, parameter_dtype=parameters)
    tensors = case.make(device)
    tensors['addend'] = tensors['addend'].bfloat16()
    grad = make_tensor(2, 8, 7, 9, device=device)
    with torch.autocast(device, torch.bfloat16):
        actual = results(embed, tensors, grad)
    expected = results(reference.embed, exact_copies(tensors), grad.double().cpu())
    assert actual.pop('').dtype == torch.bfloat16
    for name, got in actual.items():
        assert got.dtype == tensors[name].dtype
        assert_close(got, expected[name], tolerance=TOLERANCES[torch.bfloat16])


def test_infinity_stays_in_its_pixel(device):
    tensors = Case('', tensors=PARAMETERS, n=1, high=(40, 50), c=70).make(device)
    clean = embed(**tensors)
    for spoiled in (torch.inf, torch.nan):
        tensors['x'][0, 1, 20, 30] = spoiled
        out = embed(**tensors)
        assert not out[0, :, 20, 30].isfinite().any()
        out[0, :, 20, 30] = clean[0, :, 20, 30]
        assert torch.equal(out, clean)


def test_inputs_are_not_written_to_and_two_runs_are_equal(device):
    tensors = Case('', tensors=ALL, n=2, high=(33, 41), low=(16, 20), c=70).make(device)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    grad = make_tensor(2, 3, 33, 41, device=device)
    first, second = (results(embed, tensors, grad) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert all(torch.equal(tensors[name], copy) for name, copy in copies.items())


def test_gates_that_are_shut_or_open(device):
    """Beyond what a sigmoid tells from 0 and 1 the other side counts for nothing."""
    tensors = Case('', tensors=ALL).make(device)
    grad = make_tensor(2, 3, 7, 9, device=device)
    plain = embed(**{name: t for name, t in tensors.items() if name not in ('gate', 'addend')})
    for logit in (-300.0, 300.0):
        tensors['gate'].fill_(logit)
        found = results(embed, tensors, grad)
        assert all(tensor.isfinite().all() for tensor in found.values())
        assert found['gate'].count_nonzero() == 0
        without = 'x' if logit < 0 else 'addend'
        assert found[without].count_nonzero() == 0
    torch.testing.assert_close(found[''], plain)


def test_double_backward_is_refused(device):
    x = EVERYTHING.make(device)['x'].requires_grad_()
    (grad,) = torch.autograd.grad(embed(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


def test_backend_torch(device):
    with backend('torch'):
        check_case(Case('', tensors=ALL), device)


GOOD = Case('', n=2, c=5, d=3, tensors=ALL)


@pytest.mark.parametrize(
    ('changes', 'error', 'named'),
    [
        ({'x': None}, TypeError, ('x', 'NoneType')),
        ({'x': torch.zeros(5, 7, 9)}, ValueError, ('x', '5, 7, 9')),
        ({'x': torch.zeros(2, 5, 7, 9, dtype=torch.int64)}, TypeError, ('x', 'int64')),
        ({'x': torch.zeros(0, 5, 7, 9)}, ValueError, ('x', '0, 5, 7, 9')),
        ({'x': torch.zeros(2, 5, 2, 9)}, ValueError, ('x', 'addend')),
        ({'weight': [[1.0]]}, TypeError, ('weight', 'list')),
        ({'weight': torch.zeros(3)}, ValueError, ('weight', '5', '3')),
        ({'weight': torch.zeros(3, 4)}, ValueError, ('weight', '5', '4')),
        ({'weight': torch.zeros(0, 5)}, ValueError, ('weight', '0, 5')),
        ({'weight': torch.zeros(3, 5).double()}, TypeError, ('weight', 'float32', 'float64')),
        ({'weight': torch.zeros(3, 5, device='meta')}, ValueError, ('weight', 'cpu', 'meta')),
        ({'weight': None}, ValueError, ('bias', 'weight')),
        ({'bias': 0.5}, TypeError, ('bias', 'float')),
        ({'bias': torch.zeros(5)}, ValueError, ('bias', '3', '5')),
        ({'norm_weight': torch.zeros(3)}, ValueError, ('norm_weight', '5', '3')),
        ({'norm_bias': torch.zeros(1, 5)}, ValueError, ('norm_bias', '5', '1, 5')),
        ({'norm_bias': torch.zeros(5).half()}, TypeError, ('norm_bias', 'float16')),
        ({'normalize': 1}, TypeError, ('normalize', '1')),
        ({'normalize': None}, TypeError, ('normalize', 'None')),
        ({'normalize': False}, ValueError, ('norm_weight', 'normalize')),
        ({'normalize': False, 'norm_weight': None}, ValueError, ('norm_bias', 'normalize')),
        ({'normalize': False, 'weight': None, 'bias': None}, ValueError, ('weight', 'normalize')),
        ({'eps': 0}, ValueError, ('eps', '0')),
        ({'eps': float('nan')}, ValueError, ('eps', 'nan')),
        ({'eps': '1'}, TypeError, ('eps', '1')),
        ({'addend': None}, ValueError, ('addend', 'gate')),
        ({'addend': 1.0}, TypeError, ('addend', 'float')),
        ({'addend': torch.zeros(2, 4, 3, 4)}, ValueError, ('addend', '3', '4')),
        ({'addend': torch.zeros(1, 3, 3, 4)}, ValueError, ('addend', '2', '1')),
        ({'addend': torch.zeros(2, 3, 3, 4).double()}, TypeError, ('addend', 'float64')),
        ({'addend': torch.zeros(2, 3, 8, 4)}, ValueError, ('x', 'addend', '8, 4')),
        ({'gate': torch.zeros(2, 3, 3, 4)}, ValueError, ('gate', '1', '3')),
        ({'gate': torch.zeros(2, 1, 3, 5)}, ValueError, ('gate', 'addend', '3, 5')),
        ({'gate': torch.zeros(2, 1, 3, 4, device='meta')}, ValueError, ('gate', 'meta')),
        ({'gate': torch.zeros(2, 1, 3, 0)}, ValueError, ('gate', '0')),
    ],
    ids=lambda value: ', '.join(value) if isinstance(value, dict) else None,
)
def test_bad_input(changes, error, named):
    with pytest.raises(error) as info:
        embed(**(GOOD.make() | changes))
    for name in named:
        assert name in str(info.value), (name, str(info.value))
