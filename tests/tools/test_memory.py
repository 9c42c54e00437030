"""The estimate of a network's memory: by hand, and against what the process takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from testing_matting import PAIRED_A2U, SAPA, build_small

from sapa_mm.tools import memory

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'matting' / 'matting-tiny_bilinear_1xb8-400_toy-96x96.py'

# VmHWM is the most that the process has held, and 5 sets it to what it holds now.
MEASURE = """
import sys
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from sapa_mm.matting import predict_alpha
from sapa_mm.tools import memory

torch.set_num_threads(1)
model = MODELS.build(Config.fromfile(sys.argv[1]).model).eval()
height, width = size = int(sys.argv[2]), int(sys.argv[3])
image = torch.zeros(height, width, 3, dtype=torch.uint8).numpy()
trimap = torch.full(size, 128, dtype=torch.uint8).numpy()
predict_alpha(model, image[:64, :64], trimap[:64, :64])

def held(name):
    for line in open('/proc/self/status'):
        if line.startswith(name):
            return 1024 * int(line.split()[1])

before = held('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')
predict_alpha(model, image, trimap)
print(held('VmHWM') - before, memory.estimate_memory(model, size))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_against_what_the_process_takes():
    command = [sys.executable, '-W', 'ignore', '-c', MEASURE, str(CONFIG), '768', '1024']
    # The C library keeps freed blocks below a size that grows up to 32 MiB; here it stays small.
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '1000000', 'OMP_NUM_THREADS': '1'}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    taken, estimated = map(int, result.stdout.split())
    assert estimated > 250 * 2**20
    assert 0.88 < taken / estimated < 1.05


def test_live_storages_by_hand():
    with memory.LiveStorages() as storages:
        x = torch.empty(1000, device='meta')  # 4,000 bytes
        y = x.view(10, 100)  # is the same storage
        assert storages.live == 4000
        z = y + 1
        assert storages.live == 8000
        del x
        assert storages.live == 8000
        del y
        assert storages.live == 4000
        z += torch.empty(500, device='meta').repeat(2).view(10, 100)
        assert (storages.live, storages.peak) == (4000, 4000 + 2000 + 4000)
    del z
    assert storages.live == 0


@pytest.mark.parametrize('upsample_cfg', [SAPA, PAIRED_A2U], ids=str)
def test_grows_with_the_image(upsample_cfg):
    net = build_small(upsample_cfg, None)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small, large = (memory.estimate_memory(net, size) for size in ((64, 96), (256, 384)))
    assert large / small == pytest.approx(16, rel=0.05)
    # What is padded is held besides its padding, with 16 bytes a pixel.
    extra = memory.ALLOWANCE * 16 * 51 * 82
    assert memory.estimate_memory(net, (51, 82)) == pytest.approx(small + extra, rel=0.005)
    for name, value in net.state_dict().items():
        assert value.device.type == 'cpu' and torch.equal(value, before[name])


def test_the_side_that_fits():
    net = build_small(SAPA)
    size = (300, 400)
    needed = memory.estimate_memory(net, size)
    assert memory.fitting_side(net, size, needed) == 400
    for share in (0.9, 0.25, 0.02):
        side = memory.fitting_side(net, size, int(share * needed))
        assert side % 16 == 0
        # It is reduced by the root of the share, less a rest.
        assert 0.75 * share**0.5 * 400 - 16 < side <= share**0.5 * 400
        reduced = memory.estimate_memory(net, (round(side * 0.75), side))
        assert reduced <= share * needed
    assert memory.fitting_side(net, size, 100) is None


def test_free_memory(device):
    free = memory.free_memory(torch.device(device))
    assert 2**24 < free
    if device == 'cpu':
        assert free <= os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
