"""Which backend an operator runs, with real calls of the kernels counted."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from testing_utils import (
    TOLERANCES,
    Sizes,
    affiliation_inputs,
    assembly_inputs,
    assert_close_to_reference,
    forward_and_gradients,
    make_tensor,
)

import sapa_mm
from sapa_mm import ops
from sapa_mm.kernels import affiliation, affiliation_backward, assembly, similarity
from sapa_mm.ops import assemble, backend, local_similarity, point_affiliation, unavailable

SMALL = Sizes(1, 6, 5, (3, 4), (6, 7))
# All sizes differ, as torch.compile takes equal ones for one and the same.
COMPILED = (Sizes(2, 6, 5, (3, 4), (7, 8)), Sizes(3, 6, 5, (4, 7), (10, 11)))


def similarity_inputs(sizes, **kwargs):
    return affiliation_inputs(sizes, **kwargs)[:2]


def window_inputs(sizes, **kwargs):
    return assembly_inputs(sizes, 3, **kwargs)


OPS = {
    'point_affiliation': (point_affiliation, affiliation_inputs),
    'local_similarity': (local_similarity, similarity_inputs),
    'assemble': (assemble, window_inputs),
}
each_op = pytest.mark.parametrize('op', OPS)


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """Counts the calls of the kernels' entry points, by each other too; they run as ever."""
    counter = Counter()

    def count(module, name):
        real = getattr(module, name)

        def counting(*args, **kwargs):
            counter[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    for module in (affiliation, affiliation_backward, assembly, similarity):
        for name in ('forward', 'backward'):
            # The gradients of similarity are assemblies.
            if hasattr(module, name):
                count(module, name)
    return counter


def call(op, sizes=SMALL, *, device, dtype=torch.float32, kernel_size=3):
    function, make_inputs = OPS[op]
    return function(*make_inputs(sizes, dtype=dtype, device=device), kernel_size=kernel_size)


@each_op
def test_a_forced_backend_is_the_one_that_runs(op, calls, kernel_device):
    with backend('triton'):
        actual = call(op, device=kernel_device)
    assert calls.total() == 1
    torch.manual_seed(0)
    with backend('torch'):
        expected = call(op, device=kernel_device)
    assert calls.total() == 1
    assert_close_to_reference(actual, expected)


@each_op
def test_default(op, calls, device):
    """Kernels on a GPU, PyTorch on the CPU, interpreter or not."""
    call(op, device=device)
    assert calls.total() == (device == 'cuda')
    calls.clear()
    call(op, device=device, dtype=torch.float64)
    assert not calls


@each_op
@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'dtype': torch.float64}, 'float64'),
        ({'kernel_size': 11}, r'kernel_size.*\b9\b.*\b11\b'),
        ({'sizes': Sizes(1, 6, 5, (3, 4), (27, 8))}, r'ratio.*\b8\b'),
        ({'sizes': Sizes(1, 6, 5, (3, 4), (6, 33))}, r'ratio.*\b8\b'),
    ],
    ids=['float64', 'kernel_size', 'rows', 'columns'],
)
def test_what_the_kernels_cannot_take(op, changes, reason, calls, kernel_device):
    changes = {'sizes': SMALL, 'dtype': torch.float32, 'kernel_size': 3} | changes
    sizes, dtype, kernel_size = changes.values()
    if op == 'assemble':
        inputs = assembly_inputs(sizes, kernel_size, dtype=dtype, device=kernel_device)
    else:
        inputs = OPS[op][1](sizes, dtype=dtype, device=kernel_device)
    function = OPS[op][0]
    with backend('triton'), pytest.raises(RuntimeError, match=f'(?s)triton.*{reason}'):
        function(*inputs, kernel_size=kernel_size)
    assert ops.unavailable('torch', *inputs, kernel_size=kernel_size) is None
    sentence = unavailable('triton', *inputs, kernel_size=kernel_size)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(sentence)
    # By default it goes to PyTorch without a word.
    assert function(*inputs, kernel_size=kernel_size).isfinite().all()
    assert not calls


@pytest.mark.parametrize('kernel_size', [1, 9])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize('high', [(3, 4), (5, 11), (24, 32)], ids=str)
def test_what_the_kernels_can_take(high, dtype, kernel_size, kernel_device):
    inputs = affiliation_inputs(Sizes(1, 2, 3, (3, 4), high), dtype=dtype, device=kernel_device)
    assert unavailable('triton', *inputs, kernel_size=kernel_size) is None
    assert unavailable('triton') is None


def test_unknown_backend():
    for function in (unavailable, lambda name: backend(name).__enter__()):
        with pytest.raises(ValueError, match=r"(?s)(triton.*torch|torch.*triton).*'nonsense'"):
            function('nonsense')


def test_the_choice_ends_with_the_block(calls, kernel_device):
    def runs_kernels():
        calls.clear()
        call('point_affiliation', device=kernel_device)
        return calls.total() == 1

    default = runs_kernels()
    with backend('triton'):
        assert runs_kernels()
        with backend('torch'):
            assert not runs_kernels()
            with backend('triton'):
                assert runs_kernels()
            assert not runs_kernels()
        assert runs_kernels()
        with pytest.raises(ZeroDivisionError), backend('torch'):
            raise ZeroDivisionError
        assert runs_kernels()
    assert runs_kernels() == default
    for name in ('torch', 'triton'):
        with pytest.raises(ZeroDivisionError), backend(name):
            raise ZeroDivisionError
        assert runs_kernels() == default
    # A refused call leaves nothing behind either.
    with pytest.raises(RuntimeError, match='float64'), backend('triton'):
        call('point_affiliation', device=kernel_device, dtype=torch.float64)
    assert runs_kernels() == default


@each_op
def test_the_backward_follows_its_forward(op, calls, kernel_device):
    """Whatever block it runs in, or after all of them."""
    function, make_inputs = OPS[op]
    leaves = [x.requires_grad_() for x in make_inputs(SMALL, device=kernel_device)]
    with backend('triton'):
        out = function(*leaves, kernel_size=3)
        grad = torch.ones_like(out)
        calls.clear()
        inside = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        expected_calls = calls.copy()
    assert expected_calls['backward'] > 0
    calls.clear()
    after = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    assert calls == expected_calls
    calls.clear()
    with backend('torch'):
        elsewhere = torch.autograd.grad(out, leaves, grad)
    assert calls == expected_calls
    for gradients in zip(inside, after, elsewhere, strict=True):
        assert torch.equal(gradients[0], gradients[1])
        assert torch.equal(gradients[0], gradients[2])
    with backend('torch'):
        out = function(*leaves, kernel_size=3)
    calls.clear()
    with backend('triton'):
        torch.autograd.grad(out, leaves, grad)
    assert not calls


# What the default gives, why the kernels cannot run, what forcing them raises, the default again.
REFUSAL = """
import torch
from sapa_mm.ops import backend, point_affiliation, unavailable

device = 'cuda' if torch.cuda.is_available() else 'cpu'
shapes = (1, 4, 6, 8), (1, 4, 3, 4), (1, 5, 3, 4)
inputs = [torch.randn(shape, device=device) for shape in shapes]
print(tuple(point_affiliation(*inputs).shape))
print(unavailable('triton', *inputs, kernel_size=5))
try:
    with backend('triton'):
        point_affiliation(*inputs)
except RuntimeError as error:
    print(error)
print(tuple(point_affiliation(*inputs).shape))
"""


# The finder of an installed checkout would find its kernels for a copy too.
FORGET_CHECKOUTS = """
import sys

finders = [getattr(f, '__module__', '').startswith('__editable__') for f in sys.meta_path]
sys.meta_path[:] = [f for f, editable in zip(sys.meta_path, finders) if not editable]
"""

# A Triton that is the installed one but for its version.
OLD_TRITON = """
from pathlib import Path

__path__ = [{folder!r}]
init = Path({folder!r}, '__init__.py')
exec(compile(init.read_text(), init, 'exec'))
__version__ = '3.2.0'
"""


def refusal(before: str = '', **env: str) -> str:
    """Run the script in an environment where the kernels cannot run; return why they cannot."""
    result = subprocess.run(
        [sys.executable, '-c', before + REFUSAL],
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    first, reason, error, last = result.stdout.splitlines()
    assert first == last == '(1, 5, 6, 8)'
    assert error == f'the triton backend cannot run: {reason}'
    return reason


def test_without_a_gpu_and_without_the_interpreter():
    reason = refusal(CUDA_VISIBLE_DEVICES='', HIP_VISIBLE_DEVICES='', TRITON_INTERPRET='0')
    assert 'GPU' in reason
    assert 'TRITON_INTERPRET' in reason


def test_in_a_checkout_that_is_not_installed(tmp_path):
    """The package found by its path alone has no kernels inside."""
    shutil.copytree(Path(sapa_mm.__file__).parent, tmp_path / 'sapa_mm')
    reason = refusal(FORGET_CHECKOUTS, PYTHONPATH=str(tmp_path))
    assert reason.startswith('sapa_mm.kernels is not installed')
    assert 'pip install -e .' in reason


def test_with_an_old_triton(tmp_path):
    package = tmp_path / 'triton'
    package.mkdir()
    installed = importlib.util.find_spec('triton').submodule_search_locations[0]
    (package / '__init__.py').write_text(OLD_TRITON.format(folder=installed))
    reason = refusal(PYTHONPATH=str(tmp_path))
    assert reason == 'triton >= 3.3 is needed, 3.2.0 is installed'


@pytest.mark.parametrize(('normalization', 'border'), [('softmax', 'zero'), ('relu', 'mask')])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_opcheck_point_affiliation(layout, normalization, border, calls, kernel_device):
    sizes = Sizes(1, 3, 4, (3, 4), (5, 7))
    inputs = affiliation_inputs(sizes, layout=layout, device=kernel_device)
    arguments = (*(x.requires_grad_() for x in inputs), 3, normalization, 0.5, border, 'triton')
    torch.library.opcheck(torch.ops.sapa_mm.point_affiliation.default, arguments)
    assert calls['backward'] > 0


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_opcheck_local_similarity(layout, calls, kernel_device):
    sizes = Sizes(1, 3, 4, (3, 4), (5, 7))
    inputs = similarity_inputs(sizes, layout=layout, device=kernel_device)
    arguments = (*(x.requires_grad_() for x in inputs), 3, 0.5, 'triton')
    torch.library.opcheck(torch.ops.sapa_mm.local_similarity.default, arguments)
    assert calls['backward'] > 0


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_opcheck_assemble(layout, groups, calls, kernel_device):
    sizes = Sizes(1, 3, 4, (3, 4), (5, 7))
    inputs = assembly_inputs(sizes, 3, groups, layout=layout, device=kernel_device)
    arguments = (*(x.requires_grad_() for x in inputs), 3, groups, 'triton')
    torch.library.opcheck(torch.ops.sapa_mm.assemble.default, arguments)
    assert calls['backward'] > 0


@each_op
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile(op, calls, kernel_device):
    operator, make_inputs = OPS[op]

    def function(first, *others):
        return F.relu(operator(first * 2, *others, kernel_size=3)) + 1

    torch._dynamo.reset()
    compiled = torch.compile(function, backend='aot_eager', fullgraph=True, dynamic=True)
    for sizes in COMPILED:
        inputs = make_inputs(sizes, device=kernel_device)
        with backend('torch'):
            out = function(*inputs)
            grad = make_tensor(*out.shape, device=kernel_device)
            expected = forward_and_gradients(function, inputs, grad)
        assert not calls
        with backend('triton'):
            actual = forward_and_gradients(compiled, inputs, grad)
        assert calls['backward'] > 0
        calls.clear()
        for got, exact in zip(actual, expected, strict=True):
            assert_close_to_reference(got, exact)


def test_a_compiled_function_follows_the_block(calls, kernel_device):
    torch._dynamo.reset()
    compiled = torch.compile(point_affiliation, backend='aot_eager', fullgraph=True)
    inputs = affiliation_inputs(SMALL, device=kernel_device)
    results = {}
    for name in ('triton', 'torch', 'triton'):
        calls.clear()
        with backend(name):
            results[name] = compiled(*inputs)
        assert calls.total() == (name == 'triton')
    assert_close_to_reference(results['triton'], results['torch'])


@each_op
def test_autocast(op, calls, kernel_device):
    """To bfloat16, but for scores, which stay in float32."""
    function, make_inputs = OPS[op]
    inputs = list(make_inputs(SMALL, device=kernel_device))
    inputs[0] = inputs[0].bfloat16()
    exact = [tensor.double().cpu() for tensor in inputs]
    reference = getattr(ops.reference, op)
    grad = make_tensor(*reference(*exact, kernel_size=3).shape, device=kernel_device)
    with torch.autocast(kernel_device, torch.bfloat16), backend('triton'):
        actual = forward_and_gradients(function, inputs, grad, kernel_size=3)
    assert calls['backward'] > 0
    result = torch.float32 if op == 'local_similarity' else torch.bfloat16
    assert [x.dtype for x in actual] == [result, *(x.dtype for x in inputs)]
    expected = forward_and_gradients(reference, exact, grad.double().cpu(), kernel_size=3)
    for got, correct in zip(actual, expected, strict=True):
        assert_close_to_reference(got, correct, tolerance=TOLERANCES[torch.bfloat16])
