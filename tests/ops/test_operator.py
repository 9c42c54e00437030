"""Operators are called without the dispatcher where nobody watches, and through it elsewhere."""

import pytest
import torch
from testing_utils import Sizes, affiliation_inputs, assembly_inputs, forward_and_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from sapa_mm.ops import assemble, embed, local_similarity, point_affiliation

SIZES = Sizes(1, 6, 5, (3, 4), (6, 7))


class Seen(TorchDispatchMode):
    """Notes which operators of this package are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == 'sapa_mm':
            self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def calls():
    query, key, value = affiliation_inputs(SIZES)
    weights, low = assembly_inputs(SIZES, 3)
    ops = torch.ops.sapa_mm
    projection = torch.randn(4, 5)
    return {
        'point_affiliation': (
            lambda *x: point_affiliation(*x, kernel_size=3),
            lambda *x: ops.point_affiliation(*x, 3, 'softmax', 1.0, 'zero'),
            (query, key, value),
        ),
        'local_similarity': (
            lambda *x: local_similarity(*x, kernel_size=3),
            lambda *x: ops.local_similarity(*x, 3, 1.0),
            (query, key),
        ),
        'assemble': (
            lambda *x: assemble(*x, kernel_size=3),
            lambda *x: ops.assemble(*x, 3),
            (weights, low),
        ),
        'embed': (
            lambda x, w: embed(x, w),
            lambda x, w: ops.embed(x, w, None, True, None, None, 1e-5, None, None)[0],
            (low, projection),
        ),
    }


each_op = pytest.mark.parametrize('name', calls())


@each_op
def test_both_ways_give_the_same(name):
    direct, dispatched, inputs = calls()[name]
    grad = torch.randn_like(direct(*inputs))
    for got, expected in zip(
        forward_and_gradients(direct, inputs, grad),
        forward_and_gradients(dispatched, inputs, grad),
        strict=True,
    ):
        assert torch.equal(got, expected)


@each_op
def test_a_mode_sees_the_operator(name):
    direct, _, inputs = calls()[name]
    with Seen() as seen:
        direct(*inputs)
    assert seen.names == [f'sapa_mm::{name}']


@each_op
def test_a_profiler_sees_the_operator(name):
    direct, _, inputs = calls()[name]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        direct(*inputs)
    assert f'sapa_mm::{name}' in {event.key for event in profiler.key_averages()}


@each_op
def test_meta_tensors_give_shapes(name):
    direct, _, inputs = calls()[name]
    out = direct(*(x.to('meta') for x in inputs))
    assert out.is_meta
    assert out.shape == direct(*inputs).shape


@each_op
def test_no_graph_without_gradients(name):
    direct, _, inputs = calls()[name]
    leaves = [x.requires_grad_() for x in inputs]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert direct(*leaves).grad_fn is None
    assert direct(*leaves).grad_fn is not None


@each_op
def test_a_graph_records_the_operator(name):
    direct, _, inputs = calls()[name]
    traced = torch.fx.experimental.proxy_tensor.make_fx(direct)(*inputs)
    targets = [str(node.target) for node in traced.graph.nodes]
    assert f'sapa_mm.{name}.default' in targets


@each_op
def test_double_backward_is_refused(name):
    direct, _, inputs = calls()[name]
    first = inputs[0].requires_grad_()
    (grad,) = torch.autograd.grad(direct(*inputs).square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match='twice'):
        grad.sum().backward()
