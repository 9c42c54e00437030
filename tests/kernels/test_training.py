"""A real model trains with the kernels as it does without them."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from sapa_mm.kernels import affiliation_backward
from sapa_mm.ops import backend

SAPA = Path(__file__).parents[2] / 'configs' / 'sapa'
CONFIG = SAPA / 'segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
SIZE = 64
STEPS = 2
LEARNING_RATE = 1.0


def make_batch() -> dict:
    """Two random images, each half of one class and half of another."""
    shape = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE))
    batch = {'inputs': [], 'data_samples': []}
    for _ in range(2):
        truth = SegDataSample(metainfo=shape)
        labels = torch.ones(1, SIZE, SIZE, dtype=torch.int64)
        labels[:, :, SIZE // 2 :] = 3
        truth.gt_sem_seg = PixelData(data=labels)
        batch['inputs'].append(torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8))
        batch['data_samples'].append(truth)
    return batch


def train(name: str, device: str) -> tuple[list[float], dict, dict]:
    """Train with a backend: the losses, and the parameters before and after."""
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG)
    cfg.model.data_preprocessor.size = (SIZE, SIZE)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    model.to(device)
    # Not Adam: it makes a step of full size even of a gradient that is nothing but rounding.
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    optim_wrapper = OptimWrapper(optimizer)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = []
    batch = make_batch()
    with backend(name):
        for _ in range(STEPS):
            losses.append(model.train_step(batch, optim_wrapper)['loss'].item())
    return losses, before, {n: p.detach() for n, p in model.named_parameters()}


# Two steps of a whole model, its kernels interpreted.
@pytest.mark.slow
def test_training_is_that_of_the_torch_backend(kernel_device, monkeypatch):
    calls = []
    real = affiliation_backward.backward

    def counting(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(affiliation_backward, 'backward', counting)
    expected, _, parameters = train('torch', kernel_device)
    assert not calls
    actual, before, after = train('triton', kernel_device)
    # The head has six upsamplers.
    assert len(calls) == 6 * STEPS
    assert actual == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-2
    for name, parameter in parameters.items():
        step = (parameter - before[name]).abs().max().item()
        error = (parameter - after[name]).abs().max().item()
        rounding = 1e-8 + 2 * torch.finfo(torch.float32).eps * parameter.abs().max().item()
        # What differs is far less than what was learned.
        assert error <= 1e-3 * step + rounding, name
        if name.endswith('_proj.weight'):
            assert step > 100 * rounding, name
