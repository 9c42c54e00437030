"""What soft clustering computes: weights, decoding, borders, layouts, dtypes and gradients."""

import pytest
import torch
from testing_soft_clustering import (
    BORDERS,
    CASES,
    CLUSTERS,
    FORMS,
    POINTS,
    affiliation,
    embed,
    make_inputs,
    make_module,
    projections,
    weights_of,
)
from testing_utils import LAYOUTS, SIZES, assert_close_to_reference, border_margin, make_tensor
from upsampler_oracles import (
    MODULE_DTYPES,
    check_against_oracle,
    check_autocast,
    check_batch_of_one,
    check_gradients_numerically,
    check_layouts,
    randomize,
    to_parent_grid,
)

from sapa_mm.ops import reference
from sapa_mm.upsamplers import Assignment, SoftClustering, SoftClusteringUpsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')


@pytest.mark.parametrize(('sizes', 'kernel_size', 'form'), CASES, ids=str)
def test_decoding_is_point_affiliation(sizes, kernel_size, form):
    module = make_module(kernel_size=kernel_size, **form)
    margin = border_margin(sizes.high, sizes.low, kernel_size)
    check_against_oracle(
        module,
        lambda points, clusters, value: module(points, clusters).decode(value),
        lambda state, *maps: affiliation(state, *maps, kernel_size=kernel_size, **form),
        make_inputs(sizes) | {'value': make_tensor(sizes.n, sizes.c, *sizes.low).double()},
        margins={'output': margin, 'points': margin},
        tolerance=1e-11,
    )


@pytest.mark.parametrize(('sizes', 'kernel_size', 'form'), CASES, ids=str)
def test_the_upsampler_is_both_halves_in_one(sizes, kernel_size, form):
    module = make_module(SoftClusteringUpsampler, kernel_size=kernel_size, **form)
    inputs = make_inputs(sizes)
    margin = border_margin(sizes.high, sizes.low, kernel_size)
    check_against_oracle(
        module,
        module,
        lambda state, x, guide: affiliation(state, guide, x, x, kernel_size=kernel_size, **form),
        {'x': inputs['clusters'], 'guide': inputs['points']},
        margins={'output': margin, 'guide': margin},
        tolerance=1e-11,
    )
    halves = make_module(kernel_size=kernel_size, **form)
    with torch.no_grad():
        for ours, its in zip(
            projections(dict(halves.named_parameters())),
            projections(module.state_dict()),
            strict=True,
        ):
            ours.copy_(its)
    x, guide = inputs['clusters'], inputs['points']
    torch.testing.assert_close(halves(guide, x).decode(x), module(x, guide), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(('sizes', 'kernel_size', 'form'), CASES, ids=str)
def test_weights_are_the_definition(sizes, kernel_size, form):
    module = make_module(kernel_size=kernel_size, **form)
    inputs = make_inputs(sizes)
    assignment = module(**inputs)
    assert isinstance(assignment, Assignment)
    assert assignment.weights.shape == (sizes.n, kernel_size**2, *sizes.high)
    assert tuple(assignment.size) == sizes.low
    assert assignment.kernel_size == kernel_size
    check_against_oracle(
        module,
        lambda points, clusters: module(points, clusters).weights,
        lambda state, *maps: weights_of(state, *maps, kernel_size=kernel_size, **form),
        inputs,
        margins={'output': border_margin(sizes.high, sizes.low, kernel_size)},
        tolerance=1e-11,
    )


@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize(('kernel_size', 'low'), [(1, (5, 7)), (1, (1, 1)), (3, (1, 1))])
def test_a_single_cluster(kernel_size, low, form):
    sizes = SIZES[0]._replace(low=low, high=(9, 13))
    inputs = make_inputs(sizes)
    assignment = make_module(kernel_size=kernel_size, **form)(**inputs)
    upsampler = make_module(SoftClusteringUpsampler, kernel_size=kernel_size, **form)
    parents = to_parent_grid(inputs['clusters'], (9, 13))
    assert torch.equal(assignment.decode(inputs['clusters'], hard=True), parents)
    if kernel_size == 1 or form['border'] == 'mask':
        middle = assignment.weights[:, kernel_size**2 // 2]
        torch.testing.assert_close(middle, torch.ones_like(middle))
        torch.testing.assert_close(assignment.decode(inputs['clusters']), parents)
        torch.testing.assert_close(upsampler(inputs['clusters'], inputs['points']), parents)


def test_the_default_is_the_papers():
    module = randomize(SoftClustering(POINTS, CLUSTERS)).double()
    inputs = make_inputs(SIZES[4])
    options = dict(normalize=True, border='zero', temperature=0.07, kernel_size=3)
    expected = weights_of(module.state_dict(), *inputs.values(), **options)
    assert_close_to_reference(module(**inputs).weights, expected, margin=(2, 2), tolerance=1e-11)
    upsampler = randomize(SoftClusteringUpsampler(CLUSTERS, POINTS)).double()
    points, clusters = inputs.values()
    expected = affiliation(upsampler.state_dict(), points, clusters, clusters, **options)
    out = upsampler(clusters, points)
    assert_close_to_reference(out, expected, margin=(2, 2), tolerance=1e-11)


@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('border', BORDERS)
def test_dtypes(normalize, border, dtype):
    # Rounded projections differ by more, the lower the temperature.
    form = dict(normalize=normalize, border=border, temperature=1.0, kernel_size=3)
    sizes = SIZES[5]
    # Each rounding of the embeddings is amplified by the similarities' gradients.
    options = {'grad_tolerance': 4e-2} if dtype == torch.bfloat16 else {}
    module = make_module(dtype=dtype, **form)
    check_against_oracle(
        module,
        lambda points, clusters, value: module(points, clusters).decode(value),
        lambda state, *maps: affiliation(state, *maps, **form),
        make_inputs(sizes, dtype) | {'value': make_tensor(sizes.n, 3, *sizes.low, dtype=dtype)},
        margins={'output': border_margin(sizes.high, sizes.low, 3)},
        **options,
    )
    assert module(**make_inputs(sizes, dtype)).weights.dtype == dtype


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_embedding_is_what_is_compared(form):
    module = make_module(**form)
    inputs = make_inputs(SIZES[1])
    query, key = module.embed(**inputs)
    assert query.shape == (2, 6, 10, 16)
    assert key.shape == (2, 6, 5, 8)
    scores = reference.local_similarity(query, key, kernel_size=3)
    expected = reference.local_similarity(
        *embed(module.state_dict(), *inputs.values(), form['normalize']), kernel_size=3
    )
    # It holds however the temperature is dealt out between the two and the operator.
    ratio = (scores.flatten() @ expected.flatten() / expected.square().sum()).item()
    assert min(abs(ratio - 1), abs(ratio * form['temperature'] - 1)) < 1e-9
    torch.testing.assert_close(scores, ratio * expected)


def test_only_the_cosine_ignores_lengths():
    points, clusters = make_inputs(SIZES[1]).values()
    length = torch.rand(2, 1, 10, 16).double() + 0.5
    for normalize in (True, False):
        module = make_module(normalize=normalize)
        weights = module(points, clusters).weights
        scaled = module(length * points, clusters).weights
        assert torch.allclose(weights, scaled) == normalize


@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_weights_sum_to_one(kernel_size, form):
    module = make_module(kernel_size=kernel_size, **form)
    for sizes in SIZES:
        weights = module(**make_inputs(sizes)).weights
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(sizes.n, *sizes.high).double())


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize(
    ('kernel_size', 'corner', 'edge', 'second_ring'), [(3, 4 / 9, 6 / 9, 1), (5, 0.36, 0.6, 0.8)]
)
def test_borders_by_value(kernel_size, corner, edge, second_ring, normalize):
    """Equal scores: embeddings of 0 are like nothing, the outside of the image included."""
    value = torch.ones(1, 2, 6, 7)
    outs = {}
    for border in BORDERS:
        module = SoftClustering(4, 3, 8, kernel_size, normalize, border=border)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        assignment = module(torch.randn(1, 4, 12, 14), torch.randn(1, 3, 6, 7))
        outs[border] = assignment.decode(value)
        if border == 'zero':
            equal = torch.full_like(assignment.weights, 1 / kernel_size**2)
            torch.testing.assert_close(assignment.weights, equal)
        else:
            # The positions inside share it.
            weights = assignment.weights[0, :, 0, 0]
            weights = weights[weights != 0]
            assert len(weights) == (kernel_size // 2 + 1) ** 2
            torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(weights)))
    torch.testing.assert_close(outs['mask'], torch.ones(1, 2, 12, 14))
    out = outs['zero'][0, 0]
    for i in (0, 1, -1, -2):
        for j in (0, 1, -1, -2):
            assert out[i, j].item() == pytest.approx(corner, abs=1e-6)
        assert out[i, 6].item() == pytest.approx(edge, abs=1e-6)
        assert out[5, i].item() == pytest.approx(edge, abs=1e-6)
    assert out[2, 6].item() == pytest.approx(second_ring, abs=1e-6)
    assert out[5, 6].item() == pytest.approx(1, abs=1e-6)


def test_weights_outside_the_image():
    points, clusters = make_inputs(SIZES[1]).values()
    outside = {}
    for border in BORDERS:
        weights = make_module(border=border)(points, clusters).weights
        # This is the row above the first row's window.
        outside[border] = weights[:, :3, :2]
        assert (weights[:, 3:6, :, 4:12] > 0).all()
    assert (outside['zero'] > 0).all()
    assert outside['mask'].eq(0).all()


@pytest.mark.parametrize('form', FORMS[::2], ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_layouts(form, layout):
    upsampler, clustering = make_module(SoftClusteringUpsampler, **form), make_module(**form)
    for high in ((10, 12), (9, 11)):
        shapes = (2, CLUSTERS, 5, 6), (2, POINTS, *high)
        check_layouts(upsampler, *shapes, layout)
        check_layouts(lambda x, guide: clustering(guide, x).decode(x), *shapes, layout)
        x, guide = (make_tensor(*s, dtype=torch.float64, layout=layout) for s in shapes)
        out = clustering(guide, x).decode(x, hard=True)
        x, guide = x.contiguous(), guide.contiguous()
        torch.testing.assert_close(out, clustering(guide, x).decode(x, hard=True))


@pytest.mark.parametrize('form', FORMS[1:3], ids=str)
def test_gradcheck(form):
    module = make_module(SoftClusteringUpsampler, embed_dims=2, **form)
    inputs = make_inputs(SIZES[9]._replace(n=1, low=(2, 2), high=(3, 3)))
    check_gradients_numerically(module, 'forward', inputs['clusters'], inputs['points'])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize('border', BORDERS)
def test_vectors_of_zeros(dtype, border):
    upsampler = make_module(SoftClusteringUpsampler, dtype, border=border)
    clustering = make_module(dtype=dtype, border=border)
    x = torch.randn(2, CLUSTERS, 5, 6, dtype=dtype)
    guide = torch.randn(2, POINTS, 9, 12, dtype=dtype)
    x[0], guide[1], x[:, :, 2], guide[:, :, :, 3] = 0, 0, 0, 0
    x.requires_grad_()
    guide.requires_grad_()
    for module, out in (
        (upsampler, upsampler(x, guide)),
        (clustering, clustering(guide, x).decode(x)),
    ):
        assert out.isfinite().all()
        leaves = [x, guide, *module.parameters()]
        for grad in torch.autograd.grad(out, leaves, torch.randn_like(out)):
            assert not grad.isnan().any()
    # A point of zeros is as like one cluster as another.
    weights = clustering(guide, x).weights[1, :, 4, 6]
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 9), rtol=4e-3, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_vectors_of_zeros_under_autocast(dtype):
    module = make_module(dtype=torch.float32)
    clusters, points = torch.randn(1, CLUSTERS, 5, 6), torch.randn(1, POINTS, 9, 12)
    clusters[:, :, 2], points[:, :, :, 3] = 0, 0
    leaves = [clusters.requires_grad_(), points.requires_grad_(), *module.parameters()]
    with torch.autocast('cpu', dtype):
        out = module(points, clusters).decode(clusters)
    assert out.isfinite().all()
    for grad in torch.autograd.grad(out, leaves, torch.randn_like(out)):
        assert not grad.isnan().any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('scale', [1e-4, 300.0])
def test_squares_beyond_the_dtype(dtype, scale):
    """A norm's square overflows in float16, or vanishes, long before the norm does."""
    module = make_module(dtype=dtype, embed_dims=64, temperature=1.0)
    maps = [scale * x for x in make_inputs(SIZES[1], dtype).values()]
    options = dict(normalize=True, border='zero', temperature=1.0, kernel_size=3)
    expected = weights_of(
        {name: p.double() for name, p in module.state_dict().items()},
        *(x.double() for x in maps),
        **options,
    )
    assert_close_to_reference(module(*maps).weights, expected, tolerance=2e-2)


@pytest.mark.parametrize('points_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(points_dtype):
    module = make_module(SoftClusteringUpsampler, torch.float32, temperature=1.0)
    x = make_tensor(2, CLUSTERS, 5, 6, dtype=torch.bfloat16)
    guide = make_tensor(2, POINTS, 9, 12, dtype=points_dtype)
    check_autocast(module, module, x, guide)
    clustering = make_module(dtype=torch.float32, temperature=1.0)
    check_autocast(clustering, lambda x, guide: clustering(guide, x).decode(x), x, guide)
    exact = clustering(guide.float(), x.float()).weights
    with torch.autocast('cpu', torch.bfloat16):
        assignment = clustering(guide, x)
    assert assignment.weights.dtype == torch.float32
    assert_close_to_reference(assignment.weights, exact, tolerance=2e-2)
    # The softmax itself is not rounded.
    sums = assignment.weights.sum(dim=1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_batch_of_one(form):
    points, clusters = make_inputs(SIZES[5]).values()
    check_batch_of_one(make_module(SoftClusteringUpsampler, **form), clusters, points)
    clustering = make_module(**form)
    check_batch_of_one(lambda x, guide: clustering(guide, x).weights, clusters, points)
    check_batch_of_one(lambda x, guide: clustering(guide, x).labels(), clusters, points)
