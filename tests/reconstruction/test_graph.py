"""What only a GPU can show of the training loop. conftest.py collects it where there is one."""

import copy
import json

import pytest
import torch

from sapa_mm.reconstruction import Autoencoder, training
from sapa_mm.reconstruction.training import WARM_UP, Training
from sapa_mm.tools import reconstruct

pytestmark = pytest.mark.gpu

CONV, MAX_POOL, PAIRED = (dict(type=kind) for kind in ('conv', 'max_pool', 'paired'))
#: One of every kind of operator that a row has.
NETWORKS = {
    'nearest': (CONV, dict(type='nearest')),
    'deconv': (CONV, dict(type='deconv')),
    'sapa': (CONV, dict(type='SAPA')),
    'a2u': (MAX_POOL, dict(type='A2U', mode='static', kernel_size=1, encoder_kernel=4)),
    'carafe': (MAX_POOL, dict(type='CARAFE', kernel_size=1)),
    'index-net': (MAX_POOL, dict(type='IndexNet', variant='o2o', nonlinear=False)),
    'max-unpooling': (PAIRED, dict(type='MaxUnpooling')),
}
# Six whole batches and one that is short.
IMAGES, BATCH = 6 * 8 + 3, 8


def train(model: Autoencoder, images: torch.Tensor, epochs: int) -> Training:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    found = Training(model, optimizer, images, BATCH, milestones=(WARM_UP + 2, 10))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(epochs):
            for _ in found.epoch_steps():
                pass
    torch.cuda.current_stream().wait_stream(stream)
    return found


@pytest.mark.parametrize('network', NETWORKS)
def test_captured_steps_are_the_eager_ones(network, monkeypatch):
    images = torch.randint(0, 256, (IMAGES, 1, 32, 32), dtype=torch.uint8, device='cuda')
    model = Autoencoder(*NETWORKS[network], channels=(8, 16, 16))
    model = model.to('cuda', memory_format=torch.channels_last)
    eager = copy.deepcopy(model)
    captured = train(model, images, 2)
    assert captured._graph is not None
    monkeypatch.setattr(training, 'WARM_UP', 100)
    plain = train(eager, images, 2)
    assert plain._graph is None
    assert captured.loss == pytest.approx(plain.loss, rel=1e-3)
    # Sums in another order are all that may differ.
    torch.testing.assert_close(model.state_dict(), eager.state_dict(), rtol=1e-2, atol=1e-3)


def test_rows_side_by_side_are_those_in_turn(tmp_path, write_idx, draw_images):
    # Six steps an epoch are more than those that warm up.
    write_idx(tmp_path / 'train-images-idx3-ubyte', draw_images(600))
    write_idx(tmp_path / 't10k-images-idx3-ubyte', draw_images(12, seed=1))
    rows = ('conv-nearest', 'max-pool-a2u', 'conv-sapa-b')
    options = f'--data-root {tmp_path} --epochs 2 --device cuda --rows {",".join(rows)}'
    found = []
    for jobs in (1, 3):
        work = tmp_path / str(jobs)
        reconstruct.main([*options.split(), '--jobs', str(jobs), '--work-dir', str(work)])
        results = json.loads((work / 'fashion-mnist' / '2e' / 'results.json').read_text())
        found.append({result['row']: result['PSNR'] for result in results})
    assert found[0].keys() == set(rows)
    assert found[0] == pytest.approx(found[1], rel=1e-2)
