"""Soft clustering as a module: parameters, complexity, configs, hosts and bad arguments."""

import pytest
import torch
from mmengine.registry import MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from testing_soft_clustering import (
    BORDERS,
    CLUSTERS,
    POINTS,
    affiliation,
    layers_of,
    make_inputs,
)
from testing_utils import SIZES, assert_close_to_reference
from upsampler_oracles import (
    BAD_SHAPES,
    check_host_initialises,
    check_refuses_features,
    count,
    randomize,
    refused,
)

import sapa_mm.segmentation  # noqa: F401  registers GuidedFPN
from sapa_mm.upsamplers import SoftClustering, SoftClusteringUpsampler, build_upsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')


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
