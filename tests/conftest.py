import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported: without a GPU its kernels can only be interpreted.
    os.environ['TRITON_INTERPRET'] = '1'

# The tensors are small: on busy cores threads cost ten times what they save.
torch.set_num_threads(1)

# All of its tests need a GPU; what can run elsewhere is in its neighbours.
collect_ignore = [] if torch.cuda.is_available() else ['kernels/test_gpu.py']


def pytest_configure(config):
    # Tests feed infinities and overflow on purpose; numpy, which interprets the kernels, tells.
    config.addinivalue_line('filterwarnings', 'ignore::RuntimeWarning:triton.runtime.interpreter')


def pytest_addoption(parser):
    parser.addoption(
        '--kernel-cases',
        type=int,
        default=500,
        metavar='N',
        help='random cases of the sweep of the kernels (default: %(default)s)',
    )


@pytest.fixture(autouse=True)
def _seed():
    """Every test draws the same numbers whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the frameworks under test draw from it
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_default_scope():
    """No test leaves the default scope of a framework to the next."""
    yield
    if 'mmengine.registry' in sys.modules:  # the kernels are tested without it too
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session', autouse=True)
def _own_choices(tmp_path_factory):
    """Tuning on a GPU neither reads nor writes what the user's own runs keep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SAPA_MM_CACHE', str(tmp_path_factory.mktemp('choices')))
        yield


@pytest.fixture
def poisoned_memory():
    """torch.empty hands out NaN, so that an element nobody wrote shows."""
    was_enabled = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    was_filling = torch.utils.deterministic.fill_uninitialized_memory
    # Filling depends on deterministic mode; operators that have no such mode may run all the same.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = was_filling
    torch.use_deterministic_algorithms(was_enabled, warn_only=was_warning)


def _cuda() -> list:
    """The parameter 'cuda', marked, where there is such a device."""
    return [pytest.param('cuda', marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


@pytest.fixture(params=['cpu', *_cuda()])
def device(request) -> str:
    """Every device that is there: each with its default backend."""
    return request.param


@pytest.fixture(params=_cuda() or ['cpu'])
def kernel_device(request) -> str:
    """Where the Triton kernels run: compiled on the GPU, without one interpreted on the CPU."""
    return request.param


@pytest.fixture(scope='session')
def toy_data(tmp_path_factory) -> Path:
    """The folder of toy scenes of 64 pixels, four to train on and two to validate on."""
    folder = tmp_path_factory.mktemp('data') / 'toy'
    script = Path(__file__).parents[1] / 'tools' / 'make_toy_dataset.py'
    sizes = ['--num-train', '4', '--num-val', '2', '--size', '64']
    subprocess.run([sys.executable, script, '--out', folder, *sizes], check=True)
    return folder
