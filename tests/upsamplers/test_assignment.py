import itertools

import pytest
import torch
from testing_soft_slic import average, to_dense
from testing_utils import (
    LAYOUTS,
    SIZES,
    assert_close_to_reference,
    forward_and_gradients,
    make_tensor,
)
from torch.nn import functional as F
from upsampler_oracles import refused

from sapa_mm.ops import reference
from sapa_mm.ops.clustering import soft_slic
from sapa_mm.upsamplers import Assignment, SoftClustering, superpixels

pytestmark = pytest.mark.usefixtures('poisoned_memory')


def candidates(assignment, i, j):
    """Of every window position inside the image of point (i, j): its index, row and column."""
    k = assignment.kernel_size
    (h, w), (hg, wg) = assignment.size, assignment.weights.shape[2:]
    found = []
    for p in range(k * k):
        row, col = i * h // hg + p // k - k // 2, j * w // wg + p % k - k // 2
        if 0 <= row < h and 0 <= col < w:
            found.append((p, row, col))
    return found


def likeliest(assignment):
    """Row and column (N, Hg, Wg, 2) of every point's likeliest cluster, by loops."""
    n, _, hg, wg = assignment.weights.shape
    out = torch.empty(n, hg, wg, 2, dtype=torch.int64)
    for b in range(n):
        for i in range(hg):
            for j in range(wg):
                weights = assignment.weights[b, :, i, j].tolist()
                _, *place = max(candidates(assignment, i, j), key=lambda c, w=weights: w[c[0]])
                out[b, i, j] = torch.tensor(place)
    return out


def places(assignment):
    """The same as row * W + column."""
    row, col = likeliest(assignment).unbind(-1)
    return row * assignment.size[1] + col


def make_assignment(n, low, high, kernel_size=3, dtype=torch.float64):
    """Random weights, some of which are larger outside the image than inside."""
    logits = 2 * torch.randn(n, kernel_size**2, *high, dtype=torch.float64)
    return Assignment(logits.softmax(dim=1).to(dtype), low)


def test_one_assignment_decodes_several_maps():
    sizes = SIZES[4]
    assignment = make_assignment(1, sizes.low, sizes.high)
    for channels in (1, 2, 19):
        value = make_tensor(1, channels, *sizes.low).double()
        expected = reference.assemble(assignment.weights, value, kernel_size=3)
        out = assignment.decode(value)
        assert out.shape == (1, channels, *sizes.high)
        assert_close_to_reference(out, expected, margin=(2, 2))
    # It is the same channel by channel, and linear.
    torch.testing.assert_close(assignment.decode(value[:, 4:5]), out[:, 4:5])
    torch.testing.assert_close(assignment.decode(2 * value), 2 * out)


@pytest.mark.parametrize('hard', [False, True])
def test_value_of_another_dtype(hard):
    assignment = make_assignment(2, (4, 5), (8, 10), dtype=torch.float32)
    value = torch.randn(2, 3, 4, 5)
    for wrong in (value.double(), value.bfloat16(), value.half()):
        with refused('value', str(wrong.dtype).removeprefix('torch.'), error=TypeError):
            assignment.decode(wrong, hard=hard)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize('hard', [False, True])
def test_dtypes_under_autocast(hard, dtype):
    assignment = make_assignment(2, (4, 5), (8, 10), dtype=torch.float32)
    value = torch.randn(2, 3, 4, 5)
    expected = assignment.decode(value, hard=hard)
    assert expected.dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        out = assignment.decode(value.to(dtype), hard=hard)
    assert out.dtype == (dtype if hard else torch.bfloat16)
    assert_close_to_reference(out, expected, tolerance=2e-2)


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize(
    ('low', 'high'), [((4, 5), (8, 10)), ((5, 7), (9, 13)), ((2, 1), (5, 3)), ((3, 4), (3, 4))]
)
def test_labels_and_hard_decoding(low, high, kernel_size):
    assignment = make_assignment(2, low, high, kernel_size)
    found = likeliest(assignment)
    labels = assignment.labels()
    assert labels.dtype == torch.int64
    assert torch.equal(labels, places(assignment))
    value = torch.randn(2, 3, *low).double()
    out = assignment.decode(value, hard=True)
    assert out.shape == (2, 3, *high)
    assert out.dtype == torch.float64
    for b in range(2):
        for i in range(high[0]):
            for j in range(high[1]):
                row, col = found[b, i, j].tolist()
                assert torch.equal(out[b, :, i, j], value[b, :, row, col])


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('scale', [1.0, 100.0])
def test_likeliest_is_never_outside(normalize, scale):
    """All similarities inside are negative, so that the border of zeros is likelier."""
    module = SoftClustering(4, 3, 8, normalize=normalize)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
    # With a scale of 100 and no norm all the weights inside underflow to 0.
    points = scale * (torch.rand(1, 4, 10, 12) + 0.5)
    clusters = -scale * (torch.rand(1, 3, 5, 6) + 0.5)
    assignment = module(points, clusters)
    for i in (0, 9):
        inside = [p for p, *_ in candidates(assignment, i, 0)]
        assert assignment.weights[0, inside, i, 0].sum() < 0.01
    labels = assignment.labels()
    for i in range(10):
        for j in range(12):
            allowed = {6 * row + col for _, row, col in candidates(assignment, i, j)}
            assert labels[0, i, j].item() in allowed
    if normalize:
        assert torch.equal(labels, places(assignment))
    value = 1 + torch.rand(1, 2, 5, 6)
    expected = value.flatten(2)[:, :, labels.flatten()].view(1, 2, 10, 12)
    assert torch.equal(assignment.decode(value, hard=True), expected)


def test_hard_decoding_passes_gradients_to_the_value():
    assignment = make_assignment(1, (3, 4), (6, 8))
    value = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, 2, 6, 8).double()
    (got,) = torch.autograd.grad(assignment.decode(value, hard=True), value, grad)
    expected = torch.zeros(1, 2, 12).double()
    expected.index_add_(2, assignment.labels().flatten(), grad.flatten(2))
    torch.testing.assert_close(got, expected.view(1, 2, 3, 4))


def three_levels():
    grids = ((19, 27), (10, 14), (5, 7), (3, 4))
    return [make_assignment(2, low, high) for high, low in itertools.pairwise(grids)]


@pytest.mark.parametrize('size', [(37, 53), (19, 27), (60, 80)])
def test_superpixels_follow_the_levels(size):
    assignments = three_levels()
    levels = superpixels(assignments, size)
    tables = [places(assignment).flatten(1).tolist() for assignment in assignments]
    assert [level.shape for level in levels] == [(2, *size)] * 3
    assert all(level.dtype == torch.int64 for level in levels)
    found = [level.tolist() for level in levels]
    for b in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                place = (i * 19 // size[0]) * 27 + j * 27 // size[1]
                for level, table in zip(found, tables, strict=True):
                    place = table[b][place]
                    assert level[b][i][j] == place


def test_superpixels_of_one_level_are_its_labels():
    assignment = make_assignment(2, (3, 4), (5, 7))
    (level,) = superpixels((assignment,), (5, 7))
    assert torch.equal(level, assignment.labels())


def test_superpixels_of_levels_that_do_not_follow():
    fine, middle, coarse = three_levels()
    for wrong in ([fine, coarse], [coarse, middle, fine], [middle, fine], [fine, fine]):
        with refused('assignments', error=ValueError):
            superpixels(wrong, (37, 53))
    with refused('assignments', error=ValueError):
        superpixels([], (37, 53))


@pytest.mark.parametrize('hard', [False, True])
def test_bad_value(hard):
    assignment = make_assignment(2, (4, 5), (8, 10), dtype=torch.float32)
    with refused('value', 'list', error=TypeError):
        assignment.decode([1.0], hard=hard)
    for shape in ((1, 3, 4, 5), (3, 3, 4, 5), (2, 3, 8, 10), (2, 3, 5, 4), (2, 3, 1, 1), (3, 4, 5)):
        with refused('value', error=ValueError):
            assignment.decode(torch.zeros(shape), hard=hard)


#: Ratios 1 to 16, broken ones, one row, one column and one cell, as (H, W) and (Hg, Wg).
AVERAGED = [
    ((4, 5), (4, 5)),
    ((4, 5), (8, 10)),
    ((5, 7), (23, 37)),
    ((2, 6), (9, 31)),
    ((3, 2), (48, 32)),
    ((1, 4), (7, 13)),
    ((4, 1), (13, 3)),
    ((1, 1), (5, 6)),
]
#: Left out is one point a cluster, which is the average whatever its weight: the gradient is 0.
AVERAGES = [(sizes, k) for sizes in AVERAGED for k in (1, 3, 5) if k > 1 or sizes[0] != sizes[1]]


def average_of(weights, value, size):
    return Assignment(weights, size).average(value)


def check_average(weights, value, size, tolerance=None):
    """Hold the average and the gradients of weights and value to the oracle's in float64."""
    grad = make_tensor(len(value), value.shape[1], *size, dtype=value.dtype)
    got = forward_and_gradients(average_of, [weights, value], grad, size=size)
    exact = [x.detach().double().contiguous() for x in (weights, value)]
    expected = forward_and_gradients(average, exact, grad.double(), size=size)
    for what, x, y in zip(('average', 'weights', 'value'), got, expected, strict=True):
        assert x.dtype == value.dtype, what
        margin = [min(1, side // 3) for side in x.shape[2:]]
        assert_close_to_reference(
            x, y, margin=margin, tolerance=tolerance, floor=0.01 * y.abs().max().item(), what=what
        )


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(('sizes', 'kernel_size'), AVERAGES, ids=str)
def test_average_and_gradients(sizes, kernel_size, dtype):
    for n, channels in ((1, 1), (2, 7)):
        weights = make_assignment(n, *sizes, kernel_size, dtype).weights
        value = make_tensor(n, channels, *sizes[1], mean=0.5, dtype=dtype)
        check_average(weights, value, sizes[0])


def test_average_of_one_point_a_cluster():
    value = torch.randn(2, 3, 4, 5)
    weights = torch.rand(2, 1, 4, 5).requires_grad_()
    out = average_of(weights, value, (4, 5))
    torch.testing.assert_close(out, value)
    (grad,) = torch.autograd.grad(out.sum(), weights)
    torch.testing.assert_close(weights * grad, torch.zeros_like(grad), rtol=0, atol=2e-6)


def test_average_by_loops():
    low, high = (3, 4), (7, 9)
    assignment = make_assignment(2, low, high, 3)
    value = torch.randn(2, 2, *high).double()
    total, mass = torch.zeros(2, 2, *low).double(), torch.zeros(2, 1, *low).double()
    for i in range(high[0]):
        for j in range(high[1]):
            for p, row, col in candidates(assignment, i, j):
                weight = assignment.weights[:, p : p + 1, i, j]
                total[:, :, row, col] += weight * value[:, :, i, j]
                mass[:, :, row, col] += weight
    # What the candidates leave, outside the grid, goes nowhere.
    assert mass.sum() < 0.95 * 2 * 7 * 9
    torch.testing.assert_close(assignment.average(value), total / mass)
    torch.testing.assert_close(average(assignment.weights, value, low), total / mass)


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('sizes', AVERAGED, ids=str)
def test_the_references_average(sizes, kernel_size):
    weights = make_assignment(2, *sizes, kernel_size).weights
    value = torch.randn(2, 3, *sizes[1]).double()
    leaves = [weights.requires_grad_(), value.requires_grad_()]
    got, expected = (f(*leaves, sizes[0]) for f in (reference.average, average))
    torch.testing.assert_close(got, expected)
    grad = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad(x, leaves, grad) for x in (got, expected)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('sizes', [*AVERAGED[1:3], AVERAGED[4]], ids=str)
def test_average_in_half_precision(sizes, dtype):
    """Hundreds of numbers of one sign: a sum that is kept in the dtype stops growing."""
    weights = make_assignment(2, *sizes, dtype=dtype).weights
    check_average(weights, make_tensor(2, 3, *sizes[1], mean=3.0, dtype=dtype), sizes[0])


@pytest.mark.parametrize('border', ['zero', 'mask'])
@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_average_of_a_soft_clustering(kernel_size, border):
    module = SoftClustering(4, 3, 8, kernel_size, border=border).double()
    points, clusters = torch.randn(2, 4, 23, 37).double(), torch.randn(2, 3, 5, 7).double()
    assignment = module(points, clusters)
    check_average(assignment.weights, make_tensor(2, 5, 23, 37).double(), (5, 7))
    # The gradient goes on to the projections.
    assignment.average(points).square().sum().backward()
    assert (module.query_proj.weight.grad != 0).any() == (kernel_size > 1)


@pytest.mark.parametrize('high', [(23, 37), (80, 112)])
def test_average_of_superpixels_is_their_centres(high):
    """From the centres comes the next association."""
    features = torch.randn(2, 4, *high).double()
    assignment = soft_slic(features, (5, 7), 2)
    check_average(assignment.weights, features, (5, 7))
    centres = assignment.average(features)
    dense = to_dense(soft_slic(features, (5, 7), 3).weights, (5, 7))
    distance = (features.flatten(2).mT[:, :, None] - centres.flatten(2).mT[:, None]).square().sum(3)
    expected = (-distance).masked_fill(dense == 0, -torch.inf).softmax(2)
    torch.testing.assert_close(dense, expected)


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('sizes', AVERAGED, ids=str)
def test_average_of_a_constant_is_the_constant(sizes, kernel_size):
    """So is what is decoded of it, where nothing is assigned to the outside."""
    value = torch.tensor([3.0, -1.0]).double().view(1, 2, 1, 1).expand(2, 2, *sizes[1])
    out = make_assignment(2, *sizes, kernel_size).average(value)
    torch.testing.assert_close(out, value[:, :, :1, :1].expand_as(out))
    module = SoftClustering(4, 3, 8, kernel_size, border='mask').double()
    for assignment in (
        module(torch.randn(2, 4, *sizes[1]).double(), torch.randn(2, 3, *sizes[0]).double()),
        soft_slic(torch.randn(2, 4, *sizes[1]).double(), sizes[0], 3),
    ):
        torch.testing.assert_close(assignment.decode(assignment.average(value)), value)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_cluster_without_points(dtype):
    """It has 0, and no gradient is NaN; its neighbours do not notice."""
    sizes = (4, 5), (13, 17)
    weights = make_assignment(2, *sizes, dtype=dtype).weights
    place = torch.zeros(1, 1, 4, 5)
    place[..., 2, 3] = 1
    # Where the windows meet the cluster is what the unfolded map of it tells.
    meets = F.unfold(place, 3, padding=1).view(1, 9, 4, 5)
    rows, columns = (torch.arange(high) * low // high for low, high in zip(*sizes, strict=True))
    meets = meets[:, :, rows][..., columns] > 0
    weights = weights.masked_fill(meets, 0)
    value = make_tensor(2, 3, *sizes[1], mean=2.0, dtype=dtype)
    assert to_dense(weights, sizes[0])[..., 2 * 5 + 3].count_nonzero() == 0
    leaves = [weights.requires_grad_(), value.requires_grad_()]
    out = Assignment(leaves[0], sizes[0]).average(leaves[1])
    assert (out[..., 2, 3] == 0).all()
    expected = average(weights.double(), value.double(), sizes[0])
    assert_close_to_reference(out.detach(), expected.detach())
    for grad in torch.autograd.grad(out, leaves, torch.randn_like(out)):
        assert grad.isfinite().all()


def test_a_cluster_that_is_hardly_assigned_to():
    """The mean of few is a mean all the same: no number is added to the sum of the weights."""
    sizes = (4, 5), (13, 17)
    weights = make_assignment(2, *sizes, dtype=torch.float32).weights
    value = make_tensor(2, 3, *sizes[1], mean=2.0)
    expected = average(weights.double(), value.double(), sizes[0])
    for scale in (1e-3, 1e-10):
        assert_close_to_reference(Assignment(scale * weights, sizes[0]).average(value), expected)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_of_an_average(layout):
    weights = make_tensor(2, 9, 23, 37, dtype=torch.float64, layout=layout).softmax(dim=1)
    value = make_tensor(2, 4, 23, 37, dtype=torch.float64, layout=layout)
    check_average(weights, value, (5, 7))
    strided = make_tensor(2, 9, 23, 37, dtype=torch.float64, layout=layout).square()
    check_average(strided, value.contiguous(), (5, 7))


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_gradcheck_of_an_average(kernel_size):
    weights = make_assignment(2, (2, 3), (4, 5), kernel_size).weights.requires_grad_()
    value = torch.randn(2, 2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(average_of, (weights, value, (2, 3)))


@pytest.mark.parametrize('wanted', ['weights', 'value'])
def test_one_gradient_of_an_average(wanted):
    leaves = {
        'weights': make_assignment(1, (5, 7), (23, 37)).weights,
        'value': torch.randn(1, 3, 23, 37).double(),
    }
    leaves[wanted].requires_grad_()
    grad = torch.randn(1, 3, 5, 7).double()
    got, expected = (
        torch.autograd.grad(f(**leaves, size=(5, 7)), leaves[wanted], grad)[0]
        for f in (average_of, average)
    )
    torch.testing.assert_close(got, expected)


def test_average_is_repeatable_and_writes_to_nothing():
    assignment = make_assignment(2, (5, 7), (23, 37), dtype=torch.float32)
    value = torch.randn(2, 3, 23, 37)
    copies = assignment.weights.clone(), value.clone()
    assert torch.equal(assignment.average(value), assignment.average(value))
    assert torch.equal(assignment.weights, copies[0])
    assert torch.equal(value, copies[1])
    with torch.inference_mode():
        assert torch.equal(assignment.average(value), assignment.average(value.clone()))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32], ids=str)
def test_average_under_autocast(dtype):
    assignment = make_assignment(2, (3, 2), (48, 32), dtype=torch.float32)
    value = make_tensor(2, 3, 48, 32, mean=2.0, dtype=dtype)
    expected = assignment.average(value.float())
    assert expected.dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        out = assignment.average(value)
    assert_close_to_reference(out, expected, tolerance=2e-2)


@pytest.mark.parametrize('wrong', [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_averaged_value_of_another_dtype(wrong):
    assignment = make_assignment(2, (4, 5), (8, 10), dtype=torch.float32)
    with refused('value', str(wrong).removeprefix('torch.'), error=TypeError):
        assignment.average(torch.zeros(2, 3, 8, 10, dtype=wrong))


def test_bad_averaged_value():
    assignment = make_assignment(2, (4, 5), (8, 10), dtype=torch.float32)
    with refused('value', 'list', error=TypeError):
        assignment.average([1.0])
    with refused('value', 'int64', error=TypeError):
        assignment.average(torch.zeros(2, 3, 8, 10, dtype=torch.int64))
    for shape in (
        (1, 3, 8, 10),
        (3, 3, 8, 10),
        (2, 3, 4, 5),
        (2, 3, 10, 8),
        (2, 3, 1, 1),
        (3, 8, 10),
    ):
        with refused('value', error=ValueError):
            assignment.average(torch.zeros(shape))
    with refused('value', 'meta', error=ValueError):
        assignment.average(torch.zeros(2, 3, 8, 10, device='meta'))
