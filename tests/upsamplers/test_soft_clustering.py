import pytest
import torch
from mmengine.registry import MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from testing_utils import LAYOUTS, SIZES, assert_close_to_reference, border_margin, make_tensor
from torch.nn import functional as F
from upsampler_oracles import (
    BAD_SHAPES,
    MODULE_DTYPES,
    check_against_oracle,
    check_autocast,
    check_batch_of_one,
    check_gradients_numerically,
    check_host_initialises,
    check_layouts,
    check_refuses_features,
    count,
    randomize,
    refused,
    to_parent_grid,
)

import sapa_mm.segmentation  # noqa: F401  registers GuidedFPN
from sapa_mm.ops import reference
from sapa_mm.upsamplers import (
    Assignment,
    SoftClustering,
    SoftClusteringUpsampler,
    build_upsampler,
)

pytestmark = pytest.mark.usefixtures('poisoned_memory')

#: Of the points and of the clusters. Not equal, so that their projections can be told apart.
POINTS, CLUSTERS = 5, 7
BORDERS = ('zero', 'mask')
#: Every form of the similarity, with a temperature that keeps the softmax off its corners.
FORMS = [
    {'normalize': normalize, 'border': border, 'temperature': temperature}
    for normalize, temperature in ((True, 0.2), (False, 1.5))
    for border in BORDERS
]
#: Ratios 1 to 4, 33x45 over 17x23, other odd ones, and maps smaller than the window. Without those
#: where one cluster is all there is: the gradients of its weight, which is 1, are 0.
CASES = [
    (sizes, kernel_size, form)
    for kernel_size, chosen in ((3, SIZES), (5, [SIZES[i] for i in (0, 3, 4, 8, 9)]))
    for sizes in chosen
    for form in FORMS
    if not (form['border'] == 'mask' and sizes.low == (1, 1))
]


def make_module(cls=SoftClustering, dtype=torch.float64, **options):
    """A module with random parameters whose points, or guide, have the channels ``POINTS``."""
    channels = (POINTS, CLUSTERS) if cls is SoftClustering else (CLUSTERS, POINTS)
    return randomize(cls(*channels, **{'embed_dims': 6, **options})).to(dtype)


def make_inputs(sizes, dtype=torch.float64):
    return {
        'points': make_tensor(sizes.n, POINTS, *sizes.high, mean=0.4, dtype=dtype),
        'clusters': make_tensor(sizes.n, CLUSTERS, *sizes.low, mean=-0.3, dtype=dtype),
    }


def projections(state):
    """Wq (d, POINTS) and Wk (d, CLUSTERS), whatever they are called."""
    by_width = {weight.shape[1]: weight.flatten(1) for weight in state.values()}
    assert len(state) == 2
    return by_width[POINTS], by_width[CLUSTERS]


def embed(state, points, clusters, normalize):
    """Query and key, divided by their norms."""
    maps = []
    for weight, x in zip(projections(state), (points, clusters), strict=True):
        projected = torch.einsum('dc,nchw->ndhw', weight, x)
        if normalize:
            projected = projected / projected.square().sum(dim=1, keepdim=True).sqrt()
        maps.append(projected)
    return maps


def affiliation(state, points, clusters, value, *, normalize, border, temperature, kernel_size):
    """The whole operator by the reference of the project's own operator."""
    return reference.point_affiliation(
        *embed(state, points, clusters, normalize),
        value,
        kernel_size=kernel_size,
        temperature=temperature,
        border=border,
    )


def weights_of(state, points, clusters, *, normalize, border, temperature, kernel_size):
    """The weights, from windows that F.unfold cuts out of the clusters' grid."""
    query, key = embed(state, points, clusters, normalize)
    n, _, h, w = key.shape

    def windows(x):
        cut = F.unfold(x, kernel_size, padding=kernel_size // 2)
        cut = to_parent_grid(cut.view(n, -1, h, w), query.shape[2:])
        return cut.unflatten(1, (-1, kernel_size**2))

    scores = torch.einsum('ndyx,ndpyx->npyx', query, windows(key)) / temperature
    if border == 'mask':
        inside = windows(torch.ones_like(key[:, :1]))[:, 0] > 0
        scores = scores.masked_fill(~inside, -torch.inf)
    return scores.softmax(dim=1)


def layers_of(module):
    """The sub-modules that hold the projections."""
    return [layer for layer in module.modules() if getattr(layer, 'weight', None) is not None]


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
    # However the temperature is dealt out between the two and the operator.
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
            # Those inside share it.
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
        # The row above the first row's window.
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


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, 2 * 16 * 64),
        ({'embed_dims': 32}, 2 * 16 * 32),
        ({'kernel_size': 5, 'normalize': False, 'border': 'mask'}, 2 * 16 * 64),
    ],
    ids=str,
)
def test_parameters(options, expected):
    for cls, other in (
        (SoftClustering, 'cluster_channels'),
        (SoftClusteringUpsampler, 'guide_channels'),
    ):
        module = cls(16, **options)
        assert count(module) == expected
        assert len(list(module.parameters())) == len(module.state_dict()) == 2
        assert all(layer.bias is None for layer in layers_of(module))
        assert len(layers_of(module)) == 2
        wider = cls(16, **{other: 24}, **options)
        assert count(wider) == expected // 32 * 40


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        # Projections 60 * 16 * 8 + 15 * 12 * 8, similarities 60 * 9 * 8, assembly 60 * 9 * 12.
        ({'embed_dims': 8}, 7680 + 1440 + 4320 + 6480),
        # d = 64: 60 * 16 * 64 + 15 * 12 * 64 + 60 * 9 * 64 + 60 * 9 * 12.
        ({}, 61440 + 11520 + 34560 + 6480),
        ({'embed_dims': 8, 'kernel_size': 5}, 7680 + 1440 + 12000 + 18000),
        ({'embed_dims': 8, 'kernel_size': 1, 'border': 'mask'}, 7680 + 1440 + 480 + 720),
    ],
    ids=str,
)
def test_flops(options, expected):
    flops = SoftClusteringUpsampler(12, 16, **options).flops((3, 5), (6, 10))
    assert type(flops) is int
    assert flops == expected


def test_flops_at_odd_sizes():
    flops = SoftClusteringUpsampler(4, 6, embed_dims=2).flops((2, 3), (3, 5))
    assert flops == 15 * 6 * 2 + 6 * 4 * 2 + 15 * 9 * 2 + 15 * 9 * 4


def test_is_registered_and_built():
    module = MODELS.build({'type': 'SoftClusteringUpsampler', 'in_channels': 8})
    assert type(module) is SoftClusteringUpsampler
    cfg = dict(
        type='SoftClusteringUpsampler',
        embed_dims=16,
        kernel_size=5,
        normalize=False,
        temperature=0.5,
        border='mask',
    )
    module = randomize(build_upsampler(cfg, CLUSTERS, POINTS)).double()
    assert type(module) is SoftClusteringUpsampler
    points, clusters = make_inputs(SIZES[4]).values()
    form = dict(kernel_size=5, normalize=False, temperature=0.5, border='mask')
    expected = affiliation(module.state_dict(), points, clusters, clusters, **form)
    assert_close_to_reference(module(clusters, points), expected, margin=(4, 4), tolerance=1e-11)


def test_in_a_guided_fpn():
    neck = MMSEG_MODELS.build(
        dict(
            type='GuidedFPN',
            in_channels=[8, 12, 16],
            out_channels=4,
            num_outs=3,
            upsample_cfg=dict(type='SoftClusteringUpsampler', embed_dims=6),
            step_cfgs=dict(c3_c2=dict(kernel_size=5, border='mask')),
        )
    )
    neck.init_weights()
    inputs = [
        torch.randn(2, c, *size)
        for c, size in zip((8, 12, 16), ((33, 45), (17, 23), (9, 12)), strict=True)
    ]
    outs = neck(inputs)
    assert [out.shape for out in outs] == [(2, 4, 33, 45), (2, 4, 17, 23), (2, 4, 9, 12)]
    c1, c2, c3 = (conv(x) for conv, x in zip(neck.lateral_convs, inputs, strict=True))
    c2 = c2 + neck.upsamplers['c3_c2'](c3, c2)
    c1 = c1 + neck.upsamplers['c2_c1'](c2, c1)
    for out, conv, merged in zip(outs, neck.fpn_convs, (c1, c2, c3), strict=True):
        torch.testing.assert_close(out, conv(merged))
    sum(out.square().sum() for out in outs).backward()
    assert all(p.grad.abs().sum() > 0 for p in neck.upsamplers.parameters())


@pytest.mark.parametrize('initialise', [False, True])
@pytest.mark.parametrize('cls', [SoftClustering, SoftClusteringUpsampler])
def test_initial_parameters(cls, initialise):
    """PyTorch's own: uniform within 1 / sqrt(fan_in)."""
    module = cls(256, 64)
    if initialise:
        if cls is SoftClusteringUpsampler:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.fill_(3.0)
        module.init_weights()
    for weight in module.parameters():
        bound = weight[0].numel() ** -0.5
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert abs(weight.mean()) < 6 * bound / (3 * weight.numel()) ** 0.5


def test_a_hosts_initialization_leaves_it():
    module = SoftClusteringUpsampler(8, 12)
    (kind,) = {type(layer) for layer in layers_of(module)}
    check_host_initialises(module, kind)


@pytest.mark.parametrize('cls', [SoftClustering, SoftClusteringUpsampler])
def test_init_cfg_of_the_user(cls):
    (kind,) = {type(layer).__name__ for layer in layers_of(cls(8))}
    module = cls(8, init_cfg={'type': 'Constant', 'layer': kind, 'val': 0.5})
    module.init_weights()
    assert all(parameter.eq(0.5).all() for parameter in module.parameters())


@pytest.mark.parametrize('cls', [SoftClustering, SoftClusteringUpsampler])
def test_repr_shows_the_options(cls):
    shown = repr(cls(8, kernel_size=7, temperature=0.125, border='mask', normalize=False))
    assert all(option in shown for option in ('7', '0.125', 'mask', 'False'))


@pytest.mark.parametrize('cls', [SoftClustering, SoftClusteringUpsampler])
@pytest.mark.parametrize('argument', ['in_channels', 'other_channels', 'embed_dims'])
@pytest.mark.parametrize('wrong', [0, -1, 8.0, '8', True], ids=repr)
def test_bad_number_of_channels(cls, argument, wrong):
    if argument == 'other_channels':
        argument = 'cluster_channels' if cls is SoftClustering else 'guide_channels'
    with refused(argument, error=ValueError if type(wrong) is int else TypeError):
        cls(**({'in_channels': 8} | {argument: wrong}))


@pytest.mark.parametrize('cls', [SoftClustering, SoftClusteringUpsampler])
@pytest.mark.parametrize(
    ('argument', 'wrong', 'error'),
    [
        ('kernel_size', 4, ValueError),
        ('kernel_size', 0, ValueError),
        ('kernel_size', -3, ValueError),
        ('kernel_size', 3.0, TypeError),
        ('kernel_size', '3', TypeError),
        ('kernel_size', True, TypeError),
        ('kernel_size', None, TypeError),
        ('normalize', 1, TypeError),
        ('normalize', 'True', TypeError),
        ('normalize', None, TypeError),
        ('temperature', 0, ValueError),
        ('temperature', -0.07, ValueError),
        ('temperature', float('inf'), ValueError),
        ('temperature', float('nan'), ValueError),
        ('temperature', '0.07', TypeError),
        ('temperature', True, TypeError),
        ('temperature', None, TypeError),
        ('border', 'replicate', ValueError),
        ('border', 'Zero', ValueError),
        ('border', None, (TypeError, ValueError)),
        ('border', 0, (TypeError, ValueError)),
        ('border', ['zero'], (TypeError, ValueError)),
    ],
)
def test_bad_option(cls, argument, wrong, error):
    with refused(argument, *(BORDERS if argument == 'border' else ()), error=error):
        cls(8, **{argument: wrong})


def test_bad_features():
    check_refuses_features(SoftClusteringUpsampler(8))
    module = SoftClustering(8)
    ours = {'x': 'clusters', 'guide': 'points'}
    points, clusters = torch.zeros(2, 8, 6, 8), torch.zeros(2, 8, 3, 4)
    for run in (module, module.embed):
        for x, guide, names in BAD_SHAPES:
            with refused(*(ours.get(name, name) for name in names), error=ValueError):
                run(torch.zeros(guide), torch.zeros(x))
        with refused('points', 'list', error=TypeError):
            run([1.0], clusters)
        with refused('clusters', 'list', error=TypeError):
            run(points, [1.0])
        with refused('clusters', 'int64', error=TypeError):
            run(points.long(), clusters.long())
        with refused('points', 'float64', 'float32', error=TypeError):
            run(points.double(), clusters)
