import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from testing_configs import load

TOY = 'sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'


@pytest.fixture
def model():
    cfg = copy.deepcopy(load(TOY))
    init_default_scope('mmseg')
    return MODELS.build(cfg.model)


def features():
    sizes = zip((16, 32, 64, 128), (16, 8, 4, 2), strict=True)
    return [torch.randn(2, channels, side, side) for channels, side in sizes]


def test_the_whole_segmentor_is_one_graph(model):
    explained = torch._dynamo.explain(model.eval())(torch.randn(2, 3, 64, 64))
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


def test_the_head_trains_as_one_graph(model):
    head = model.decode_head
    inputs = features()
    compiled = torch.compile(head, fullgraph=True, backend='eager')

    def gradients(function) -> list[torch.Tensor]:
        return torch.autograd.grad(function(inputs).square().mean(), list(head.parameters()))

    for got, expected in zip(gradients(compiled), gradients(head), strict=True):
        torch.testing.assert_close(got, expected)
    head.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs), head(inputs))
