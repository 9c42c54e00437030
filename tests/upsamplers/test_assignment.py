import itertools

import pytest
import torch
from testing_utils import SIZES, assert_close_to_reference, make_tensor
from upsampler_oracles import refused

from sapa_mm.ops import reference
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
