"""HCResNet is the stock ResNet to the bit, with the assignments that it computes on its way."""

import itertools

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmengine.registry import DefaultScope
from mmseg.models.backbones import ResNetV1c
from mmseg.registry import MODELS
from testing_clustering import (
    BRANCHES,
    GRIDS,
    TINY,
    VARIANTS,
    assert_all_get_a_gradient,
    build_pair,
    check_assignments,
    expected_weights,
    make_features,
    make_images,
    projections,
    run_stock,
)
from testing_hosts import assert_same_bits
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.segmentation import ClusteredFeatures, HCResNet
from sapa_mm.upsamplers import Assignment


def gradients(net: nn.Module, feats: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
    """Gradients of the net's parameters from its features alone."""
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in feats)
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    return {name: grad for (name, _), grad in zip(named, grads, strict=True)}


# The stock net


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('variant', list(VARIANTS))
def test_level_0_is_the_stock_net_bit_for_bit(variant, depth, training):
    ours, stock = build_pair(depth, variant, levels=0)
    assert list(ours.state_dict()) == list(stock.state_dict())
    ours.train(training), stock.train(training)
    images = make_images()
    got, expected = ours(images), stock(images)
    assert type(got) is ClusteredFeatures
    assert got.assignments == ()
    assert_same_bits(tuple(got), expected)
    grads, expected_grads = gradients(ours, got), gradients(stock, expected)
    assert grads.keys() == expected_grads.keys()
    assert_same_bits(list(grads.values()), list(expected_grads.values()))
    assert_same_bits(list(ours.state_dict().values()), list(stock.state_dict().values()))


@pytest.mark.parametrize('levels', [0, 4])
def test_resnet_101_has_the_published_keys(levels):
    stock = ResNetV1c(depth=101, **TINY).state_dict()
    ours = HCResNet(101, levels, **TINY).state_dict()
    shapes = {name: x.shape for name, x in ours.items() if not name.startswith('clusterings.')}
    assert shapes == {name: x.shape for name, x in stock.items()}
    assert len(ours) == len(stock) + 2 * levels


@pytest.mark.parametrize('branch', BRANCHES)
@pytest.mark.parametrize('levels', [1, 2, 3, 4])
@pytest.mark.parametrize(
    ('depth', 'variant'), [(18, 'V1c'), (18, 'plain'), (50, 'V1c'), (50, 'V1d')]
)
def test_clustering_leaves_features_gradients_and_statistics(depth, variant, levels, branch):
    ours, stock = build_pair(depth, variant, levels=levels, sampling_branch=branch)
    images = make_images()
    got, expected = ours(images), stock(images)
    assert_same_bits(tuple(got), expected)
    # The assignments' own graph must not get in the way of the features'.
    grads, expected_grads = gradients(ours, got), gradients(stock, expected)
    for name, grad in grads.items():
        if name.startswith('clusterings.'):
            assert grad is None
        else:
            assert torch.equal(grad, expected_grads[name]), name
    # With them every BN has counted this batch, and counted it once.
    buffers, expected_buffers = dict(ours.named_buffers()), dict(stock.named_buffers())
    assert buffers.keys() == expected_buffers.keys()
    assert_same_bits(list(buffers.values()), list(expected_buffers.values()))
    assert all(x == 1 for name, x in buffers.items() if name.endswith('num_batches_tracked'))


@pytest.mark.parametrize('levels', [1, 2, 3, 4])
def test_stock_weights_lack_only_the_clusterings(levels):
    ours, stock = HCResNet(18, levels, **TINY), ResNetV1c(depth=18, **TINY)
    result = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert len(result.missing_keys) == 2 * levels
    assert all(name.startswith('clusterings.') for name in result.missing_keys)
    assert set(ours.state_dict()) == set(stock.state_dict()) | set(result.missing_keys)


def test_published_weights_load_by_init_cfg(tmp_path):
    stock = ResNetV1c(depth=18, **TINY)
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth'))
    ours = HCResNet(18, 2, downsampling='dcn', init_cfg=init_cfg, **TINY)
    ours.init_weights()
    state = ours.state_dict()
    for name, x in stock.state_dict().items():
        assert torch.equal(state[name], x), name
    assert all((x == 0).all() for name, x in state.items() if 'conv_offset' in name)


def test_the_nets_initialization_leaves_that_of_the_clusterings():
    # Its own is Kaiming's for every convolution; of 64 outputs that has values beyond the bound.
    ours = HCResNet(18, 4, **TINY)
    ours.init_weights()
    for clustering in ours.clusterings.children():
        for weight in projections(clustering):
            bound = weight.shape[1] ** -0.5
            assert weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_found_by_name_with_the_papers_defaults():
    with DefaultScope.overwrite_default_scope('mmseg'):
        net = MODELS.build(dict(TINY, type='HCResNet', depth=18))
    assert type(net) is HCResNet
    # It is a ResNetV1c with clustering from stride 8 to 16 and from there to 32.
    assert net.state_dict().keys() >= ResNetV1c(depth=18, **TINY).state_dict().keys()
    feats = net(make_images())
    assert [a.size for a in feats.assignments] == list(GRIDS[3:])
    assert not any(isinstance(m, ModulatedDeformConv2dPack) for m in net.modules())


# The assignments


@pytest.mark.parametrize('levels', [1, 2, 3, 4])
@pytest.mark.parametrize('training', [True, False])
def test_grids_of_the_assignments(levels, training):
    ours = HCResNet(18, levels, **TINY)
    ours.train(training)
    feats = ours(make_images())
    assert [tuple(x.shape) for x in feats] == [
        (2, channels, *grid) for channels, grid in zip((8, 16, 32, 64), GRIDS[1:], strict=True)
    ]
    assert isinstance(feats.assignments, tuple)
    assert len(feats.assignments) == levels
    steps = list(itertools.pairwise(GRIDS))[-levels:]
    for assignment, (high, low) in zip(feats.assignments, steps, strict=True):
        assert isinstance(assignment, Assignment)
        assert assignment.weights.shape == (2, 9, *high)
        assert assignment.size == low


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('branch', BRANCHES)
@pytest.mark.parametrize(
    ('depth', 'variant'), [(18, 'V1c'), (18, 'plain'), (50, 'V1c'), (50, 'V1d')]
)
def test_points_and_clusters(depth, variant, branch, training):
    ours, stock = build_pair(depth, variant, levels=4, sampling_branch=branch)
    # The first stage of a ResNet-18 has no convolution in its shortcut.
    assert (stock.layer1[0].downsample is None) == (depth == 18)
    ours.double().train(training), stock.double().train(training)
    images = make_images(dtype=torch.float64)
    stages = run_stock(stock, images)
    if depth == 18:  # there the shortcut is the block's input, the pooled points
        pooled = F.max_pool2d(stages[0]['points'], 3, stride=2, padding=1)
        assert torch.equal(stages[0]['identity'], pooled)
    with torch.set_grad_enabled(training):
        check_assignments(ours, stages, ours(images).assignments, branch)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(embed_dims=16),
        dict(kernel_size=5),
        dict(normalize=False),
        dict(temperature=0.5),
        dict(border='mask'),
        dict(embed_dims=8, kernel_size=1, temperature=2),
    ],
)
def test_options_of_the_clustering(cfg):
    given = dict(cfg)
    ours, stock = build_pair(levels=3, clustering_cfg=given)
    assert given == cfg
    ours.double().eval(), stock.double().eval()
    images = make_images(dtype=torch.float64)
    stages, assignments = run_stock(stock, images)[1:], ours(images).assignments
    options = {key: value for key, value in cfg.items() if key != 'embed_dims'}
    for module, stage, assignment in zip(
        ours.clusterings.children(), stages, assignments, strict=True
    ):
        assert all(w.shape[0] == cfg.get('embed_dims', 64) for w in projections(module))
        assert assignment.kernel_size == cfg.get('kernel_size', 3)
        expected = expected_weights(module, stage['points'], stage['block'], **options)
        torch.testing.assert_close(assignment.weights, expected, rtol=1e-8, atol=1e-10)


def test_assignments_do_not_depend_on_out_indices():
    ours, stock = build_pair(levels=3, stock_options=dict(out_indices=(1, 3)))
    ours.eval(), stock.eval()
    images = make_images()
    feats = ours(images)
    assert_same_bits(tuple(feats), stock(images))
    assert [a.size for a in feats.assignments] == list(GRIDS[2:])


def test_fewer_stages_count_from_the_last():
    options = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 2))
    ours, stock = build_pair(levels=2, stock_options=options)
    ours.eval(), stock.eval()
    images = make_images()
    feats = ours(images)
    assert_same_bits(tuple(feats), stock(images))
    assert [a.size for a in feats.assignments] == list(GRIDS[2:4])


def test_an_image_smaller_than_the_stride():
    # The grids of 16x24 pixels are 8x12, 4x6, 2x3, 1x2 and 1x1.
    feats = make_features(4, (16, 24))
    assert [a.size for a in feats.assignments] == [(4, 6), (2, 3), (1, 2), (1, 1)]
    for assignment in feats.assignments:
        torch.testing.assert_close(assignment.weights.sum(1), torch.ones(2, *_points(assignment)))


def _points(assignment: Assignment) -> tuple[int, int]:
    return tuple(assignment.weights.shape[2:])


# Gradients


@pytest.mark.parametrize('branch', BRANCHES)
@pytest.mark.parametrize('downsampling', ['conv', 'dcn'])
@pytest.mark.parametrize('depth', [18, 50])
def test_every_parameter_gets_a_gradient_through_decode(depth, downsampling, branch):
    ours = HCResNet(depth, 4, sampling_branch=branch, downsampling=downsampling, **TINY)
    feats = ours(make_images())
    out = feats.decode(feats[-1])
    assert out.shape == (2, feats[-1].shape[1], *GRIDS[0])
    (out * torch.randn_like(out)).sum().backward()
    assert_all_get_a_gradient(ours)


@pytest.mark.parametrize(
    ('branch', 'reached', 'not_reached'),
    [
        ('identity', ['downsample.0'], ['conv1', 'conv2', 'bn2']),
        ('residual', ['conv1', 'conv2', 'bn2'], ['downsample.0', 'downsample.1']),
        ('block', ['conv1', 'conv2', 'bn2', 'downsample.0', 'downsample.1'], []),
    ],
)
def test_an_assignment_depends_on_its_branch_and_its_points_alone(branch, reached, not_reached):
    ours = HCResNet(18, 1, sampling_branch=branch, **TINY)
    feats = ours(make_images())
    out = feats.decode(torch.randn_like(feats[-1]))
    (out * torch.randn_like(out)).sum().backward()
    block = ours.layer4[0]
    for name in reached:
        assert block.get_submodule(name).weight.grad.abs().sum() > 0, name
    for name in not_reached:
        assert block.get_submodule(name).weight.grad is None, name
    assert all(p.grad is None for p in ours.layer4[1].parameters())
    assert all(p.grad.abs().sum() > 0 for p in ours.layer3.parameters())


# Options of the stock net


def flags(net: nn.Module) -> tuple[dict[str, bool], dict[str, bool]]:
    """What trains, parameters and modules, without the clusterings."""
    parameters = {name: p.requires_grad for name, p in net.named_parameters()}
    modules = {name: m.training for name, m in net.named_modules()}
    return tuple(
        {name: flag for name, flag in part.items() if not name.startswith('clusterings')}
        for part in (parameters, modules)
    )


@pytest.mark.parametrize('frozen_stages', [0, 1, 4])
@pytest.mark.parametrize('variant', ['V1c', 'plain'])
def test_frozen_stages(variant, frozen_stages):
    options = dict(frozen_stages=frozen_stages)
    ours, stock = build_pair(variant=variant, levels=4, stock_options=options)
    ours.train(), stock.train()
    assert flags(ours) == flags(stock)
    feats = ours(make_images())
    feats.decode(feats[-1]).square().sum().backward()
    # No published weights hold the clusterings, so that they have to be learned.
    assert_all_get_a_gradient(ours.clusterings)
    for name, p in ours.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


@pytest.mark.parametrize('branch', ['identity', 'block'])
def test_plugins_leave_the_clusters_to_the_branch(branch):
    plugins = [dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv3')]
    ours, stock = build_pair(
        50, levels=4, sampling_branch=branch, stock_options=dict(plugins=plugins)
    )
    for name, p in stock.named_parameters():
        if 'context_block' in name:  # it starts as the identity
            nn.init.normal_(p, std=0.1)
    ours.load_state_dict(stock.state_dict(), strict=False)
    ours.double(), stock.double()
    images = make_images(dtype=torch.float64)
    stages, feats = run_stock(stock, images), ours(images)
    check_assignments(ours, stages, feats.assignments, branch)
    ours.eval(), stock.eval()
    assert_same_bits(tuple(ours(images)), stock(images))


@pytest.mark.parametrize('branch', BRANCHES)
def test_norm_eval(branch):
    ours, stock = build_pair(levels=4, sampling_branch=branch, stock_options=dict(norm_eval=True))
    ours.train(), stock.train()
    assert flags(ours) == flags(stock)
    images = make_images()
    feats = ours(images)
    assert_same_bits(tuple(feats), stock(images))
    assert_same_bits(list(ours.buffers()), list(stock.buffers()))
    ours.eval()
    expected = ours(images)
    for got, want in zip(feats.assignments, expected.assignments, strict=True):
        assert torch.equal(got.weights, want.weights)


@pytest.mark.filterwarnings('ignore:.*use_reentrant')
@pytest.mark.parametrize('depth', [18, 50])
def test_checkpointing(depth):
    plain, _ = build_pair(depth, levels=4)
    ours = HCResNet(depth, 4, with_cp=True, **TINY)
    ours.load_state_dict(plain.state_dict())
    ours.double(), plain.double()
    images = make_images(dtype=torch.float64)
    results = []
    for net in (ours, plain):
        feats = net(images)
        out = feats.decode(feats[-1])
        (out * torch.linspace(-1, 1, out.shape[3])).sum().backward()
        results.append([*feats, *(a.weights for a in feats.assignments)])
    assert_same_bits(*results)
    assert_all_get_a_gradient(ours)
    grads = [{name: p.grad for name, p in net.named_parameters()} for net in (ours, plain)]
    for name, grad in grads[0].items():
        error = (grad - grads[1][name]).abs().max()
        assert error <= 1e-9 * grad.abs().max(), name


# Memory formats and dtypes


@pytest.mark.parametrize('downsampling', ['conv', 'dcn'])
@pytest.mark.parametrize('branch', BRANCHES)
def test_channels_last(branch, downsampling):
    ours = HCResNet(18, 4, branch, downsampling, **TINY).double()
    for name, p in ours.named_parameters():
        if 'conv_offset' in name:  # they start at zero
            nn.init.normal_(p, std=0.1)
    images = make_images(dtype=torch.float64)
    expected = ours(images)
    ours.to(memory_format=torch.channels_last)
    got = ours(images.contiguous(memory_format=torch.channels_last))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    for a, b in zip(got.assignments, expected.assignments, strict=True):
        torch.testing.assert_close(a.weights, b.weights, rtol=1e-8, atol=1e-10)
    got.decode(got[-1]).square().sum().backward()
    assert_all_get_a_gradient(ours)


@pytest.mark.parametrize('branch', BRANCHES)
def test_autocast(branch):
    ours, stock = build_pair(levels=4, sampling_branch=branch)
    images = make_images()
    with torch.autocast('cpu', torch.bfloat16):
        feats = ours(images)
        stages = run_stock(stock, images)
        out = feats.decode(feats[-1])
    assert all(x.dtype == torch.bfloat16 for x in feats)
    assert out.dtype == feats[-1].dtype
    assert out.isfinite().all()
    for module, stage, assignment in zip(
        ours.clusterings.children(), stages, feats.assignments, strict=True
    ):
        assert assignment.weights.dtype == torch.float32
        torch.testing.assert_close(
            assignment.weights.sum(1), torch.ones(2, *_points(assignment)), rtol=0, atol=1e-5
        )
        expected = expected_weights(module, stage['points'].float(), stage[branch].float())
        torch.testing.assert_close(assignment.weights, expected, rtol=0, atol=0.04)
    out.float().square().sum().backward()
    assert_all_get_a_gradient(ours)


# Bad arguments


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(levels=2.0), TypeError, 'levels.*2.0'),
        (dict(levels='2'), TypeError, "levels.*'2'"),
        (dict(levels=None), TypeError, 'levels.*None'),
        (dict(levels=True), TypeError, 'levels.*True'),
        (dict(levels=-1), ValueError, 'levels.*-1'),
        (dict(levels=5), ValueError, 'levels.*5'),
        (
            dict(
                levels=4,
                num_stages=3,
                strides=(1, 2, 2),
                dilations=(1, 1, 1),
                out_indices=(0, 1, 2),
            ),
            ValueError,
            'levels.*4',
        ),
        (dict(sampling_branch='shortcut'), ValueError, "sampling_branch.*'shortcut'"),
        (dict(sampling_branch=None), ValueError, 'sampling_branch.*None'),
        (dict(downsampling='pool'), ValueError, "downsampling.*'pool'"),
        (dict(downsampling=None), ValueError, 'downsampling.*None'),
        (dict(clustering_cfg='cosine'), TypeError, "clustering_cfg.*'cosine'"),
        (dict(clustering_cfg=[3]), TypeError, r'clustering_cfg.*\[3\]'),
        (dict(clustering_cfg=dict(width=64)), TypeError, 'width'),
        (dict(clustering_cfg=dict(in_channels=8)), TypeError, 'in_channels'),
        (dict(clustering_cfg=dict(cluster_channels=8)), TypeError, 'cluster_channels'),
        (dict(clustering_cfg=dict(kernel_size=4)), ValueError, 'kernel_size.*4'),
        (dict(clustering_cfg=dict(embed_dims=0)), ValueError, 'embed_dims.*0'),
        (dict(clustering_cfg=dict(temperature=0.0)), ValueError, 'temperature.*0'),
        (dict(clustering_cfg=dict(border='edge')), ValueError, "border.*'edge'"),
        (dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)), ValueError, 'strides'),
        (dict(strides=(1, 2, 2, 1), levels=1), ValueError, 'strides'),
        (dict(strides=(1, 1, 2, 2), levels=3), ValueError, 'strides'),
        (dict(strides=(1, 2, 2, 4), levels=1), ValueError, 'strides'),
        (dict(strides=(2, 2, 2, 2), levels=4), ValueError, 'strides'),
        (dict(with_cp=True, sampling_branch='identity'), ValueError, 'with_cp'),
        (dict(with_cp=True, sampling_branch='residual'), ValueError, 'with_cp'),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        HCResNet(18, **TINY, **options)


def test_depth_that_no_resnet_has():
    # This is the stock net's own check.
    with pytest.raises((KeyError, ValueError), match='depth 20'):
        HCResNet(20, **TINY)


@pytest.mark.parametrize(
    'options',
    [
        dict(levels=0, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        dict(levels=2, strides=(1, 1, 2, 2)),
        dict(levels=3, strides=(2, 2, 2, 2)),
    ],
)
def test_stages_that_do_not_cluster_need_not_halve(options):
    feats = HCResNet(18, **TINY, **options)(make_images())
    assert len(feats.assignments) == options['levels']
