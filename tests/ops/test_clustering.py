"""Differentiable SLIC against every point's distances to all cells, in float64."""

from typing import NamedTuple

import pytest
import torch
from testing_soft_slic import pooled, slic, to_dense, window_cells
from testing_utils import (
    DTYPES,
    LAYOUTS,
    assert_close_to_reference,
    border_margin,
    forward_and_gradients,
    make_tensor,
)
from torch.nn import functional as F
from upsampler_oracles import refused

from sapa_mm.ops import assemble, local_similarity, reference
from sapa_mm.ops.clustering import soft_slic
from sapa_mm.upsamplers import Assignment

pytestmark = pytest.mark.usefixtures('poisoned_memory')

#: Allowed max|error| / max|reference| of a region, of the weights and of the gradient; beside it
#: the worst seen of a plain float32 version.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),  # 4.2e-15 and 8.2e-15
    torch.float32: (5e-6, 1e-5),  # 1.0e-6 and 2.0e-6
}


class Case(NamedTuple):
    """One call: batch, channels, grid (H, W), size (Hg, Wg) of the features, and iterations."""

    n: int
    d: int
    low: tuple[int, int]
    high: tuple[int, int]
    iterations: int = 2

    def __str__(self) -> str:
        low, high = ('x'.join(map(str, size)) for size in (self.low, self.high))
        return f'n{self.n}-d{self.d}-{low}-{high}-i{self.iterations}'

    def make(self, dtype: torch.dtype = torch.float64, layout: str = 'contiguous') -> torch.Tensor:
        return make_tensor(self.n, self.d, *self.high, dtype=dtype, layout=layout, scale=0.7)


CASES = (
    # Every pixel is a cell.
    Case(2, 3, (5, 6), (5, 6)),
    Case(1, 3, (6, 7), (6, 7), 5),
    Case(2, 4, (6, 5), (12, 10)),
    Case(1, 4, (6, 5), (12, 10), 1),
    Case(1, 3, (5, 4), (17, 14), 5),
    # These have cells that share pixels when they are pooled.
    Case(1, 5, (5, 7), (23, 37)),
    Case(1, 5, (5, 7), (23, 37), 1),
    Case(3, 2, (5, 7), (23, 37), 5),
    Case(1, 4, (2, 6), (9, 31), 5),
    Case(3, 4, (2, 6), (9, 31)),
    Case(1, 3, (7, 8), (8, 9), 5),
    Case(1, 4, (3, 4), (48, 64), 5),
    Case(1, 20, (4, 3), (50, 45)),
    Case(2, 3, (1, 4), (9, 22), 5),
    Case(2, 3, (4, 1), (22, 9), 5),
    Case(2, 3, (1, 5), (1, 17), 2),
    Case(1, 3, (6, 2), (13, 2), 5),
    Case(1, 1, (3, 3), (10, 11), 5),
)
CASE = CASES[5]
LONG = CASES[8]


def check(case, features):
    """Hold weights and gradient to the oracle's, every border strip to its own norm."""
    options = dict(size=case.low, iterations=case.iterations)
    grad = make_tensor(case.n, 9, *case.high).double()
    got = forward_and_gradients(
        lambda x, **kwargs: soft_slic(x, **kwargs).weights, [features], grad, **options
    )
    exact = features.detach().double().contiguous()
    expected = forward_and_gradients(slic, [exact], grad, **options)
    margin = border_margin(case.high, case.low, 3)
    assert got[1].dtype == features.dtype
    tolerances = TOLERANCES[got[0].dtype]
    for what, x, y, tolerance in zip(
        ('weights', 'gradient'), got, expected, tolerances, strict=True
    ):
        # Where a strip has no choice of a cell its gradient is rounding.
        floor = 1e-2 * y.abs().max().item()
        assert_close_to_reference(x, y, margin=margin, tolerance=tolerance, floor=floor, what=what)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize('case', CASES, ids=str)
def test_weights_and_gradient(case, dtype):
    features = case.make(dtype)
    assignment = soft_slic(features, case.low, case.iterations)
    assert isinstance(assignment, Assignment)
    assert assignment.size == case.low
    assert assignment.kernel_size == 3
    assert assignment.weights.shape == (case.n, 9, *case.high)
    assert assignment.weights.dtype == dtype
    check(case, features)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_the_last_association_is_local_similarity(case):
    """The centres come from one iteration less, by the transpose of `assemble`."""
    features = case.make()
    for iterations in range(1, case.iterations + 1):
        if iterations == 1:
            centres = F.adaptive_avg_pool2d(features, case.low)
        else:
            weights = soft_slic(features, case.low, iterations - 1).weights
            ones = torch.ones_like(features[:, :1])
            value = features.new_zeros(case.n, case.d + 1, *case.low, requires_grad=True)
            (total,) = torch.autograd.grad(
                assemble(weights, value, kernel_size=3), value, torch.cat([features, ones], dim=1)
            )
            centres = total[:, :-1] / total[:, -1:]
        ones = [torch.ones_like(x[:, :1]) for x in (features, centres)]
        scores = local_similarity(
            torch.cat([features, ones[0]], dim=1),
            torch.cat([2 * centres, -centres.square().sum(dim=1, keepdim=True)], dim=1),
            kernel_size=3,
        )
        inside = local_similarity(*ones, kernel_size=3) > 0
        expected = scores.masked_fill(~inside, -torch.inf).softmax(dim=1)
        got = soft_slic(features, case.low, iterations).weights
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_the_reference(case):
    features = case.make().requires_grad_()
    got = reference.soft_slic(features, case.low, case.iterations)
    expected = slic(features, case.low, case.iterations)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(out, features, grad)[0] for out in (got, expected)),
        rtol=1e-9,
        atol=1e-11,
    )


def test_by_hand():
    """A row of four pixels and two cells: means 1 and 6, then by softmax."""
    features = torch.tensor([0.0, 2.0, 5.0, 7.0]).double().view(1, 1, 1, 4) / 4
    weights = soft_slic(features, (1, 2), 1).weights
    far = torch.tensor([(6.0**2 - 1) / 16, (4.0**2 - 1) / 16, (1 - 4.0**2) / 16, (1 - 6.0**2) / 16])
    left = far.double().sigmoid()
    # The first two pixels' parent is the left cell, which is to the left of the others'.
    expected = torch.zeros(9, 4).double()
    expected[4, :2], expected[5, :2] = left[:2], 1 - left[:2]
    expected[3, 2:], expected[4, 2:] = left[2:], 1 - left[2:]
    torch.testing.assert_close(weights[0, :, 0], expected)
    # One update later.
    x = features.flatten()
    a, b = (left @ x) / left.sum(), ((1 - left) @ x) / (1 - left).sum()
    left = ((x - b).square() - (x - a).square()).sigmoid()
    weights = soft_slic(features, (1, 2), 2).weights[0, :, 0]
    torch.testing.assert_close(torch.cat([weights[4, :2], weights[3, 2:]]), left)


def test_the_default_is_five_iterations():
    features = CASE.make()
    expected = soft_slic(features, CASE.low, 5).weights
    assert torch.equal(soft_slic(features, CASE.low).weights, expected)
    assert not torch.allclose(soft_slic(features, CASE.low, 4).weights, expected)
    # Any sequence of the sizes will do, and the result has a tuple.
    size = features[:, :, :5, :7].shape[2:]
    assignment = soft_slic(features, size=size, iterations=5)
    assert torch.equal(assignment.weights, expected)
    assert assignment.decode(features[:, :, :5, :7]).shape == features.shape


@pytest.mark.parametrize('case', CASES, ids=str)
def test_nothing_goes_outside(case):
    weights = soft_slic(case.make(torch.float32), case.low, case.iterations).weights
    outside = window_cells(case.low, case.high, 3).view(9, *case.high) < 0
    assert (weights >= 0).all()
    assert (weights[:, outside] == 0).all()
    assert (weights[:, ~outside] > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(case.n, *case.high))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize('high', [(1, 1), (5, 3), (16, 23)])
def test_a_single_cell(high, dtype):
    features = make_tensor(2, 3, *high, dtype=dtype).requires_grad_()
    weights = soft_slic(features, (1, 1), 3).weights
    expected = torch.zeros(2, 9, *high, dtype=dtype)
    expected[:, 4] = 1
    torch.testing.assert_close(weights, expected)
    (grad,) = torch.autograd.grad(weights, features, torch.randn_like(weights))
    assert grad.abs().max() < 1e-5


@pytest.mark.parametrize('case', [CASE, LONG, CASES[3], CASES[11]], ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(case, layout):
    check(case._replace(n=2), case._replace(n=2).make(layout=layout))


def test_batch_and_channels_that_are_expanded():
    one = make_tensor(1, 1, 23, 37).double()
    case = CASE._replace(n=3, d=4, iterations=5)
    check(case, one.expand(3, 4, -1, -1))


def test_images_of_a_batch_do_not_meet():
    case = CASES[7]
    features = case.make()
    weights = soft_slic(features, case.low, 5).weights
    features[1] = torch.randn_like(features[1])
    torch.testing.assert_close(
        soft_slic(features, case.low, 5).weights[::2], weights[::2], rtol=1e-9, atol=1e-12
    )
    for i in range(3):
        alone = soft_slic(features[i : i + 1], case.low, 5).weights
        torch.testing.assert_close(
            alone[0], soft_slic(features, case.low, 5).weights[i], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    'case',
    [
        Case(2, 2, (2, 2), (4, 5), 3),
        Case(1, 2, (3, 2), (5, 5), 2),
        Case(1, 1, (1, 3), (2, 7), 5),
        Case(1, 3, (2, 3), (5, 4), 1),
    ],
    ids=str,
)
def test_gradcheck(case):
    features = case.make().requires_grad_()

    def function(x):
        return soft_slic(x, case.low, case.iterations).weights

    assert torch.autograd.gradcheck(function, (features,))


@pytest.mark.parametrize('case', [CASE, LONG, CASES[11]], ids=str)
def test_a_common_offset_cancels(case):
    """Whole multiples of 2**-8, so that no offset rounds the features themselves."""
    case = case._replace(n=2, iterations=5)
    features = (case.make(torch.float32) * 256).round() / 256
    offsets = (
        torch.tensor([1000.0, -3000.0])[:, None, None, None] + torch.arange(case.d)[:, None, None]
    )
    moved = features + offsets
    assert torch.equal(moved.double() - offsets, features.double())
    expected = slic(features.double(), case.low, 5)
    margin = border_margin(case.high, case.low, 3)
    for x in (features, moved):
        got = soft_slic(x, case.low, 5).weights
        assert_close_to_reference(got, expected, margin=margin, tolerance=TOLERANCES[got.dtype][0])
    check(case, moved)


@pytest.mark.parametrize('offset', [0.0, 30.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('case', [CASE, LONG, CASES[2]], ids=str)
def test_half_precision_loses_nothing_but_its_input(case, dtype, offset):
    case = case._replace(iterations=5)
    features = (4 * case.make() + offset).to(dtype)
    got = soft_slic(features, case.low, 5)
    exact = soft_slic(features.float(), case.low, 5)
    assert got.weights.dtype == torch.float32
    torch.testing.assert_close(got.weights, exact.weights, rtol=1e-4, atol=1e-5)
    assert torch.equal(got.labels(), exact.labels())
    # Its gradient is rounded once, at the end.
    grad = torch.randn_like(got.weights)
    leaf = features.detach().requires_grad_()
    (found,) = torch.autograd.grad(soft_slic(leaf, case.low, 5).weights, leaf, grad)
    wide = features.float().requires_grad_()
    (expected,) = torch.autograd.grad(soft_slic(wide, case.low, 5).weights, wide, grad)
    assert found.dtype == dtype
    assert_close_to_reference(found, expected, tolerance=torch.finfo(dtype).eps)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_autocast(dtype):
    case = CASE._replace(iterations=5)
    features = (4 * case.make()).to(dtype).requires_grad_()
    grad = make_tensor(case.n, 9, *case.high, dtype=torch.float64)
    results = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            weights = soft_slic(features, case.low, 5).weights
        (found,) = torch.autograd.grad(weights, features, grad.to(weights.dtype))
        results.append((weights, found))
    (plain, plain_grad), (weights, found) = results
    assert plain.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert weights.dtype in (torch.float32, plain.dtype)
    assert_close_to_reference(weights.detach(), plain.detach(), tolerance=1e-5)
    assert found.dtype == dtype
    assert_close_to_reference(found, plain_grad, tolerance=max(1e-4, torch.finfo(dtype).eps))


def test_features_far_apart():
    """Every weight but one underflows, and cells are left without a point."""
    for scale in (1e2, 1e4):
        features = (scale * CASE.make(torch.float32)).requires_grad_()
        weights = soft_slic(features, CASE.low, 5).weights
        assert weights.isfinite().all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(CASE.n, *CASE.high))
        (grad,) = torch.autograd.grad(weights, features, torch.randn_like(weights))
        assert grad.isfinite().all()


def test_equal_features():
    """Equal distances: the cells inside share a point."""
    weights = soft_slic(torch.full((1, 3, 12, 15), 7.0), (4, 5), 5).weights
    inside = (window_cells((4, 5), (12, 15), 3).view(9, 12, 15) >= 0).float()
    torch.testing.assert_close(weights[0], inside / inside.sum(dim=0))


def test_clusters_find_what_they_follow():
    """Two colours and the position, in stripes askew to the grid, whose border they find."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing='ij')
    side = (columns > 20 + rows / 4).float()
    features = torch.stack([20 * side, 0.3 * rows, 0.3 * columns])[None]
    assignment = soft_slic(features, (4, 6), 10)
    labels = assignment.labels()[0]
    for label in labels.unique():
        assert len(side[labels == label].unique()) == 1
    dense = to_dense(assignment.weights, (4, 6))[0]
    assert dense.sum(dim=0).min() > 20


@pytest.mark.parametrize('case', [CASE, LONG], ids=str)
def test_inference_mode_gives_the_same(case):
    features = case.make(torch.float32)
    expected = soft_slic(features.clone().requires_grad_(), case.low, 5).weights
    assert expected.requires_grad
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            weights = soft_slic(features, case.low, 5).weights
            assert not weights.requires_grad
        assert torch.equal(weights, expected)
    assert not soft_slic(features, case.low, 5).weights.requires_grad


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'expanded'])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_the_input_is_not_written_to_and_two_runs_are_equal(dtype, layout):
    case = CASE._replace(n=2, iterations=5)
    features = case.make(dtype, layout)
    copy = features.clone()
    grad = make_tensor(2, 9, *case.high)
    first, second = (
        forward_and_gradients(lambda x: soft_slic(x, case.low, 5).weights, [features], grad)
        for _ in range(2)
    )
    assert torch.equal(features, copy)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_compile():
    def function(x):
        return soft_slic(2 * x, CASE.low, 2).weights + 1

    torch._dynamo.reset()
    compiled = torch.compile(function, backend='aot_eager', fullgraph=True)
    features = CASE.make(torch.float32)
    grad = make_tensor(CASE.n, 9, *CASE.high)
    got, expected = (forward_and_gradients(f, [features], grad) for f in (compiled, function))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_pooling_of_the_oracle():
    for case in CASES:
        features = case.make()
        torch.testing.assert_close(
            pooled(features, case.low), F.adaptive_avg_pool2d(features, case.low)
        )


@pytest.mark.parametrize(
    ('changes', 'error', 'named'),
    [
        ({'features': None}, TypeError, ('features', 'NoneType')),
        ({'features': [[1.0]]}, TypeError, ('features', 'list')),
        (
            {'features': torch.zeros(2, 3, 8, 9, dtype=torch.int64)},
            TypeError,
            ('features', 'int64'),
        ),
        ({'features': torch.zeros(2, 3, 8, 9, dtype=torch.bool)}, TypeError, ('features', 'bool')),
        ({'features': torch.zeros(3, 8, 9)}, ValueError, ('features', '3', '8', '9')),
        ({'features': torch.zeros(1, 2, 3, 8, 9)}, ValueError, ('features',)),
        ({'features': torch.zeros(0, 3, 8, 9)}, ValueError, ('features', '0')),
        ({'features': torch.zeros(2, 0, 8, 9)}, ValueError, ('features', '0')),
        ({'size': (9, 3)}, ValueError, ('size', '9', '8')),
        ({'size': (3, 10)}, ValueError, ('size', '10', '9')),
        ({'size': (0, 3)}, ValueError, ('size', '0')),
        ({'size': (3, -1)}, ValueError, ('size', '1')),
        ({'size': (3,)}, (TypeError, ValueError), ('size',)),
        ({'size': (3, 4, 5)}, (TypeError, ValueError), ('size',)),
        ({'size': 3}, (TypeError, ValueError), ('size', '3')),
        ({'size': None}, (TypeError, ValueError), ('size', 'None')),
        ({'size': '34'}, (TypeError, ValueError), ('size', '34')),
        ({'size': (3.0, 4)}, TypeError, ('size', '3')),
        ({'size': (True, 4)}, TypeError, ('size', 'True')),
        ({'iterations': 0}, ValueError, ('iterations', '0')),
        ({'iterations': -2}, ValueError, ('iterations', '2')),
        ({'iterations': True}, TypeError, ('iterations', 'True')),
        ({'iterations': 2.0}, TypeError, ('iterations', '2')),
        ({'iterations': None}, TypeError, ('iterations', 'None')),
        ({'iterations': '5'}, TypeError, ('iterations', '5')),
    ],
    ids=lambda value: ', '.join(value) if isinstance(value, dict) else None,
)
def test_bad_input(changes, error, named):
    good = dict(features=torch.zeros(2, 3, 8, 9), size=(3, 4), iterations=2)
    with refused(*named, error=error):
        soft_slic(**(good | changes))
