import math

import pytest
import torch

from sapa_mm import ops
from sapa_mm.ops import reference
from sapa_mm.tools.benchmark import candidates as contest
from sapa_mm.tools.benchmark import check as checks
from sapa_mm.tools.benchmark.flex import flex_affiliation
from sapa_mm.tools.benchmark.measure import LAYOUTS, draw
from sapa_mm.tools.benchmark.shapes import Shape

CPU = torch.device('cpu')
MODULES = ('SAPA-I module', 'SAPA-B module', 'SAPA-G module', 'DySample module', 'FADE module')
INPUTS = {'query', 'key', 'value', 'guide', 'weights'}


def draw_all(shape, dtype=torch.float32, layout='nchw'):
    return draw(shape, INPUTS, dtype, layout, CPU)


def candidate(name, shape, dtype=torch.float32, compilation='off'):
    (found,) = contest.candidates(shape, CPU, dtype, compilation, [name])
    return found


@pytest.mark.parametrize('size', [(2, 5, 9, 2, 5), (1, 4, 11, 3, 3), (2, 9, 4, 1, 7)])
@pytest.mark.parametrize('name', ['sapa_mm', 'unfold+einsum', 'compiled unfold', *MODULES])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_all_compute_the_same(name, size, layout):
    n, h, w, ratio, kernel_size = size
    if name in MODULES:
        # The reference goes by strips, which reach a pixel of x beyond their rows at least.
        kernel_size = max(kernel_size, 3)
    shape = Shape('tiny', n, h, w, 20, 6, ratio, kernel_size)
    tensors = draw_all(shape, layout=layout)
    check = checks.Check(shape, tensors)
    # What is compiled here is its Python: compiling takes a minute and is torch's affair.
    with torch.compiler.set_stance('force_eager'):
        tested = candidate(name, shape, compilation='default')
        got = tested.run(tensors, check.grad)
    assert len(got) == 1 + len(tested.inputs) + len(tested.parameters)
    assert check.error(tested, got) < 5e-6
    if tested.inputs == ('query', 'key', 'value'):
        ours = ops.point_affiliation(*(tensors[i] for i in tested.inputs), kernel_size=kernel_size)
        torch.testing.assert_close(got[0], ours, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings('ignore:flex_attention called without')
@pytest.mark.parametrize('size', [(2, 5, 9, 2, 5), (1, 4, 11, 3, 3), (2, 9, 20, 1, 7)])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_flex_attention_computes_the_same(size, layout):
    n, h, w, ratio, kernel_size = size
    shape = Shape('tiny', n, h, w, 20, 6, ratio, kernel_size)
    tensors = draw_all(shape, layout=layout)
    inputs = [tensors[name] for name in ('query', 'key', 'value')]
    flex = flex_affiliation(shape, CPU, lambda function: function)
    got = flex(*inputs)
    assert got.is_contiguous(memory_format=LAYOUTS[layout])
    expected = reference.point_affiliation(*(x.double() for x in inputs), kernel_size=kernel_size)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match='backward on CPU'):
        flex(*(x.requires_grad_() for x in inputs))


def test_flex_attention_visits_few_blocks():
    from torch.nn.attention import flex_attention as module

    shape = Shape('fpn', 1, 24, 48, 16, 16)
    masks = []
    original = module.BlockMask.from_kv_blocks

    def record(*args, **kwargs):
        masks.append(original(*args, **kwargs))
        return masks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.BlockMask, 'from_kv_blocks', record)
        flex_affiliation(shape, CPU, lambda function: function)
    visited = masks[0].kv_num_blocks[0, 0]
    assert len(visited) == 24 * 48 // 32  # one tile of 4 x 8 cells a block of 128 queries
    # Its keys, 8 x 12, lie in at most 2 x 2 tiles of 8 x 16.
    assert visited.min() >= 1
    assert visited.max() == 4


def test_strips_of_the_reference_are_the_reference(monkeypatch):
    monkeypatch.setattr(checks, 'REFERENCE_PIXELS', 60)  # strips of one to three rows
    shape = Shape('tiny', 3, 11, 5, 20, 4, 2, 5)
    tensors = draw_all(shape, torch.float64)
    check = checks.Check(shape, tensors)
    assert check.images.tolist() == [0, 2]
    assert check.channels.tolist() == [*range(8), *range(12, 20)]
    ours = candidate('sapa_mm', shape)
    assert shape.height > 60 // (2 * 10 * 2)
    leaves = [tensors[name].clone().requires_grad_() for name in ours.inputs]
    out = reference.point_affiliation(*leaves, kernel_size=5)
    grads = torch.autograd.grad(out, leaves, check.grad)
    strips = check.reference(ours)
    torch.testing.assert_close(strips[0], out[check.place].detach())
    for got, expected in zip(strips[1:], grads, strict=True):
        torch.testing.assert_close(got, expected[check.images])


def test_bands_are_the_first_the_middle_and_the_last():
    assert checks.bands(7, 7) == [range(7)]
    assert checks.bands(20, 10) == [range(3), range(8, 11), range(17, 20)]
    # None is left out where there are no more.
    assert checks.bands(3, 0) == [range(3)]
    assert checks.bands(4, 0) == [range(1), range(1, 2), range(3, 4)]
    assert checks.bands(4, 3) == [range(1), range(1, 2), range(3, 4)]


def banded(monkeypatch, dtype=torch.float32):
    """A shape of 40 rows of cells, 12 of them in bands, and its check; K 5."""
    shape = Shape('tiny', 1, 40, 3, 20, 4, 2, 5)
    monkeypatch.setattr(checks, 'CHECKED_PIXELS', 12 * 2 * 6)
    monkeypatch.setattr(checks, 'REFERENCE_PIXELS', 3 * 2 * 6)  # strips of three rows and of one
    tensors = draw_all(shape, dtype)
    check = checks.Check(shape, tensors)
    assert check.bands == [range(4), range(18, 22), range(36, 40)]
    return shape, tensors, check


def test_bands_of_the_reference_are_the_reference(monkeypatch):
    shape, tensors, check = banded(monkeypatch, torch.float64)
    high = [y for band in check.bands for y in range(2 * band.start, 2 * band.stop)]
    outside = [y for y in range(80) if y not in high]
    assert (check.grad[:, :, outside] == 0).all()
    torch.testing.assert_close(
        check.grad[check.place][:, :, high], tensors['out'][check.place][:, :, high]
    )
    ours = candidate('sapa_mm', shape)
    leaves = [tensors[name].clone().requires_grad_() for name in ours.inputs]
    out = reference.point_affiliation(*leaves, kernel_size=5)
    grads = torch.autograd.grad(out, leaves, check.grad)
    got = check.reference(ours)
    torch.testing.assert_close(got[0], out[check.place].detach()[:, :, high])
    # Each band of cells has a halo of two rows, and two rows of pixels belong to a cell.
    cells = [*range(6), *range(16, 24), *range(34, 40)]
    pixels = [y for cell in cells for y in (2 * cell, 2 * cell + 1)]
    for x, expected, rows in zip(got[1:], grads, (pixels, cells, cells), strict=True):
        torch.testing.assert_close(x, expected[:, :, rows])
    assert check.error(ours, ours.run(tensors, check.grad)) < 1e-12


@pytest.mark.parametrize(
    ('name', 'row', 'noticed'),
    [
        ('out', 0, True),
        ('out', 43, True),
        ('out', 79, True),
        ('out', 9, False),  # as the check says
        ('value', 5, True),
        ('value', 24, True),  # should be 0
        ('query', 60, True),  # likewise
    ],
)
def test_rows_that_are_noticed(name, row, noticed, monkeypatch):
    shape, tensors, check = banded(monkeypatch)
    ours = candidate('sapa_mm', shape)
    got = ours.run(tensors, check.grad)
    got[['out', *ours.inputs].index(name)][:, :, row] += 0.01
    assert (check.error(ours, got) > checks.TOLERANCE['float32']) is noticed


def spoil(where):
    """Ours, a thousandth off at one place of the output or (by its name) of a gradient."""

    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, place):
            ctx.place = place
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad[ctx.place] *= 1.001
            return grad, None

    def function(query, key, value):
        name, place = where
        maps = {'query': query, 'key': key, 'value': value}
        if name in maps:
            maps[name] = Spoiled.apply(maps[name], place)
        out = ops.point_affiliation(*maps.values(), kernel_size=3)
        if name == 'out':
            factor = torch.ones_like(out)
            factor[place] = 1.001
            out = out * factor
        return out

    return function


@pytest.mark.parametrize(
    'where',
    [
        ('out', (slice(None), slice(None), slice(0, 1))),
        ('out', (slice(None), slice(None), slice(None), slice(-1, None))),
        ('out', (slice(None), slice(-1, None))),
        ('out', slice(-1, None)),
        ('query', (slice(None), slice(None), slice(-1, None))),
        ('key', (slice(None), slice(None), slice(0, 1))),
        ('value', (slice(None), slice(-1, None))),
    ],
)
def test_a_thousandth_at_a_border_is_noticed(where):
    shape = Shape('tiny', 2, 6, 7, 20, 4, 2, 3)
    tensors = draw_all(shape)
    check = checks.Check(shape, tensors)
    exact = candidate('sapa_mm', shape).exact
    for spoiled in (False, True):
        function = spoil(where if spoiled else ('nothing', None))
        tested = contest.Candidate('tested', function, exact=exact)
        error = check.error(tested, tested.run(tensors, check.grad))
        assert (error > checks.TOLERANCE['float32']) is spoiled


def test_nan_fails_whatever_comes_first():
    shape = Shape('tiny', 1, 3, 4, 5, 4, 2, 3)
    tensors = draw_all(shape)
    check = checks.Check(shape, tensors)
    ours = candidate('sapa_mm', shape)
    for i in range(4):
        got = ours.run(tensors, check.grad)
        got[i][0, 0, 1, 1] = torch.nan
        assert math.isnan(check.error(ours, got))


@pytest.mark.parametrize(
    ('name', 'forward', 'both'),
    [
        # Query 2,097,152, key 524,288, value 4,194,304, output 16,777,216 bytes in half precision;
        # guide like the output, weights 1,638,400.
        ('sapa_mm', 23_592_960, 54_001_664),
        ('unfold+einsum', 23_592_960, 54_001_664),
        ('bilinear', 20_971_520, 41_943_040),
        ('SAPA-B module', 37_748_736, 96_468_992),
        ('SAPA-I module', 37_748_736, 96_468_992),
        ('FADE module', 37_748_736, 96_468_992),
        ('DySample module', 20_971_520, 46_137_344),
        ('mmcv CARAFE', 22_609_920, 51_052_544),
    ],
)
def test_least_bytes(name, forward, both):
    shape = Shape('small', 2, 64, 64)
    tested = candidate(name, shape)
    if name == 'mmcv CARAFE':  # which runs on GPUs alone
        tested = contest.Candidate(name, inputs=('value', 'weights'))
    assert tested.least_bytes(shape, 2, 'forward') == forward
    assert tested.least_bytes(shape, 2, 'forward+backward') == both
    assert tested.least_bytes(shape, 4, 'forward') == 2 * forward


def test_names_of_candidates():
    shape = Shape('tiny', 1, 3, 4, 8, 4)
    device = torch.device('cpu')
    found = contest.candidates(shape, device, torch.float32, 'off', contest.NAMES)
    assert [c.name for c in found] == [n for n in contest.NAMES if n != 'sapa_mm torch']
    default = [c.name for c in contest.candidates(shape, device, torch.float32, 'off')]
    assert default == [c.name for c in found if c.name[:6] not in ('SAPA-I', 'SAPA-G')]
    assert set(contest.default_names('gpu')) == {
        *('sapa_mm', 'mmcv CARAFE', 'bilinear', 'DySample module'),
        *('SAPA-I module', 'SAPA-B module', 'SAPA-G module'),
    }
