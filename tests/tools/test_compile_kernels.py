"""The ahead-of-time gate. It runs in processes of its own: the interpreter would be in its way."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'compile_kernels.py'
KERNELS = (
    'affiliation_fwd_kernel',
    'affiliation_bwd_kernel',
    'affiliation_key_bwd_kernel',
    'affiliation_value_bwd_kernel',
    'similarity_fwd_kernel',
    'assembly_fwd_kernel',
    'assembly_bwd_kernel',
    'embedding_fwd_kernel',
    'embedding_bwd_kernel',
    'embedding_sums_kernel',
    'embedding_parameters_kernel',
    'embedding_cells_kernel',
    'relay_kernel',
)
DEVICES = ('sm_80', 'sm_86', 'sm_89', 'sm_90', 'sm_120', 'gfx942')


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *arguments],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
    )


@pytest.mark.slow  # hundreds of kernels, a second each
def test_no_default_spills_or_lacks_room_or_matrix_instructions():
    result = run(str(TOOL), '--defaults')
    rows = [line for line in result.stdout.splitlines() if re.match(r'\| (sm_|gfx)', line)]
    assert result.returncode == 0, '\n'.join(
        [line for line in rows if not line.endswith('|  |')] + [result.stderr[-2000:]]
    )
    found = {tuple(cell.strip().split()[0] for cell in row.split('|')[1:3]) for row in rows}
    assert found == {(device, kernel) for device in DEVICES for kernel in KERNELS}
    assert f'{len(rows)} kernels compiled, 0 with faults' in result.stdout


FAULTY = """
from sapa_mm.tools import compile_kernels as gate
from sapa_mm.kernels import tuning

tuning.VALUE = tuning.VALUE._replace(entries=(tuning.Entry(128, 256, 4, 2),))
device = gate.DEVICES['sm_86']
gate.DEVICES['small'] = device._replace(limits=gate.launch.Device(84, 16_000))
for device in ('sm_86', 'small'):
    for found in gate.compile_case(device, gate.Case()):
        print(device, found.kernel.split()[0], found.matrix > 0, *found.faults)
"""


def test_spills_and_too_much_shared_memory_are_found():
    result = run('-c', FAULTY)
    assert result.returncode == 0, result.stderr
    spilled = [line for line in result.stdout.splitlines() if line.startswith('sm_86 aff')]
    assert re.search(
        r'sm_86 affiliation_value_bwd_kernel True \d+ spills, \d+ in loops', '\n'.join(spilled)
    )
    assert 'sm_86 affiliation_fwd_kernel True\n' in result.stdout
    crowded = r'small affiliation_fwd_kernel True \d+ bytes of shared memory, 16000 are there'
    assert re.search(crowded, result.stdout)


def test_half_precision_without_matrix_instructions_is_found():
    script = (
        'import torch\nfrom sapa_mm.tools import compile_kernels as gate\n'
        'full, half = gate.Case(torch.float32), gate.Case()\n'
        "device = gate.DEVICES['sm_80']\n"
        'items = gate.launches(full, device)[:1]\n'
        "print(*gate.judge('sm_80', full, items)[0].faults)\n"
        "print(*gate.judge('sm_80', half, items)[0].faults)\n"
    )
    assert run('-c', script).stdout.splitlines() == ['', 'no matrix instruction']


def test_elements_of_a_tuple_are_specialized_one_by_one():
    script = (
        'from sapa_mm.tools import compile_kernels as gate\n'
        "item = gate.launches(gate.Case(size=(48, 64)), gate.DEVICES['sm_80'])[0]\n"
        "source = gate.source(item, 'cuda')\n"
        "print(*source.signature['query'], source.constants[0, 2])\n"
        'names = item.kernel.arg_names\n'
        'print(*sorted((names[i], *element) for i, *element in source.attrs))\n'
    )
    signature, hints = run('-c', script).stdout.splitlines()
    # With channels innermost their stride is a constant.
    assert signature == '*fp16 i32 constexpr i32 i32 1'
    # The rows of the maps are multiples of 16 too, but no kernel shall be compiled for that.
    scalars = ('cells_x', 'channels', 'embed', 'high_x', 'share')
    tensors = ('query', 'key', 'value', 'out')
    expected = [(name,) for name in scalars] + [(x, i) for x in tensors for i in (0, 1, 3, 4)]
    assert hints == ' '.join(map(str, sorted(expected)))


LAUNCHED = """
import triton
from sapa_mm.tools import compile_kernels as gate
from triton.runtime.driver import driver

class Driver:  # of a GPU that is not there
    get_current_device = get_current_stream = lambda *_: 0
    get_current_target = lambda _: device.target

driver.set_active(Driver())
for name, case in (('sm_90', gate.Case()), ('gfx942', gate.Case(size=(1, 1), embed=1, channels=1))):
    device = gate.DEVICES[name]
    for item in gate.launches(case, device):
        options = dict(num_warps=item.num_warps, num_stages=item.num_stages)
        item.kernel.device_caches.clear()
        launched = item.kernel.warmup(**item.arguments, **item.constants, **options, grid=(1,))
        source = gate.source(item, device.target.backend)
        compiled = triton.compile(source, target=device.target, options=options)
        print(name, item.kernel.__name__, launched.asm['ttir'] == compiled.asm['ttir'])
"""


def test_a_launch_compiles_the_same(tmp_path):
    # What another checkout compiled says other places in its source.
    result = run('-c', LAUNCHED, TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = {tuple(line.split()) for line in result.stdout.splitlines()}
    devices = ('sm_90', 'gfx942')
    # Maps with channels innermost are not relaid.
    kernels = set(KERNELS) - {'relay_kernel'}
    assert found == {(device, kernel, 'True') for device in devices for kernel in kernels}


def test_it_does_not_run_in_the_interpreter():
    result = run(str(TOOL), TRITON_INTERPRET='1')
    assert result.returncode == 2
    assert 'TRITON_INTERPRET' in result.stderr
