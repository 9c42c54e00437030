"""The matting network against a plain rewriting of it, and what the papers count."""

import pytest
import torch
from mmengine.registry import MODELS
from testing_matting import (
    A2U,
    BILINEAR,
    BLOCKS,
    CHANNELS,
    CONV,
    INDEX_NET,
    MAX_POOL,
    PAIRED,
    PAIRED_A2U,
    SAPA,
    STEPS,
    build_small,
    make_inputs,
    plain_of,
    samples_of,
)
from testing_utils import assert_close_to_reference
from torch import nn
from torch.nn import functional as F
from upsampler_oracles import count

from sapa_mm.matting import GuidedMattingNet, alpha_loss, composition_loss

PLAIN = 8_049_003

PARTS = {
    'backbone.conv1': 12_544,
    'backbone.bn1': 128,
    'backbone.layer1': 221_952,
    'backbone.layer2': 1_116_416,
    'backbone.layer3': 4_461_056,
    'aspp': 666_880,
    'blocks.c5_c4': 771_328,
    'blocks.c4_c3': 193_152,
    'blocks.c3_c2': 147_968,
    'blocks.c2_c1': 48_448,
    'skips.c5_c4': 295_424,
    'skips.c4_c3': 73_984,
    'skips.c3_c2': 36_992,
    'skips.c2_c1': 2_432,
    'head': 299,
    'upsamplers': 0,
}


def a2u(mode, channel_wise=False, point_wise=False, **options):
    return dict(type='A2U', mode=mode, channel_wise=channel_wise, point_wise=point_wise, **options)


ADDED = [
    (dict(type='nearest'), 0),
    (BILINEAR, 0),
    (dict(type='CARAFE'), 263_824),
    (INDEX_NET, 2_889_728),
    (dict(type='IndexNet', variant='m2o'), 6_131_712),
    (dict(type='IndexNet', variant='m2o', hidden_ratio=2), 12_263_424),
    (a2u('static', True, True), 102_544),
    (a2u('static', True), 25_744),
    (a2u('hybrid', True), 44_176),
    (a2u('hybrid'), 18_776),
    (a2u('dynamic', True), 199_824),
    (a2u('dynamic'), 19_608),
    (a2u('dynamic', paired=True), 38_184),
    (dict(type='SAPA', similarity='inner'), 0),
    (dict(type='SAPA'), 35_072),
    (dict(type='SAPA', similarity='gated', self_projection='key'), 35_588),
    (dict(type='SAPA', similarity='gated', self_projection='separate'), 52_100),
]


@pytest.mark.parametrize('downsample', [None, MAX_POOL, CONV], ids=str)
def test_parameters_of_the_parts(downsample):
    net = GuidedMattingNet(BILINEAR, downsample_cfg=downsample)
    assert {name: count(net.get_submodule(name)) for name in PARTS} == PARTS
    assert sum(PARTS.values()) == count(net) == PLAIN
    assert net.upsamplers.keys() == set(STEPS)


@pytest.mark.parametrize(('upsample_cfg', 'added'), ADDED, ids=str)
def test_parameters_of_the_upsamplers(upsample_cfg, added):
    pairs = upsample_cfg.get('paired') or upsample_cfg['type'] == 'IndexNet'
    with torch.device('meta'):
        for downsample in (MAX_POOL, CONV, PAIRED)[: 3 if pairs else 2]:
            net = GuidedMattingNet(upsample_cfg, downsample_cfg=downsample)
            assert count(net) == PLAIN + added, downsample
            assert count(net.upsamplers) == added


def test_twice_an_index_net_is_the_papers():
    m2o, doubled = (added for cfg, added in ADDED if cfg.get('variant') == 'm2o')
    assert doubled == 2 * m2o == sum(136 * width**2 + 16 * width for width in (256, 128, 64, 64))


def test_layers():
    net = GuidedMattingNet(BILINEAR)
    assert not [name for name, m in net.named_modules() if isinstance(m, nn.ReLU)]
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is None, name
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert (layer.eps, layer.momentum) == (1e-5, 0.1), name
        elif isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.01, name
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5]


FORMS = [
    (BILINEAR, MAX_POOL),
    (A2U, MAX_POOL),
    (BILINEAR, CONV),
    (A2U, CONV),
    (INDEX_NET, PAIRED),
    (PAIRED_A2U, PAIRED),
]


@pytest.mark.parametrize(
    ('training', 'shape'),
    [
        (False, (2, 37, 51)),
        (True, (2, 37, 51)),
        (True, (1, 37, 51)),
        (True, (3, 64, 48)),
        # The largest dilation stays within 21 of stride 16.
        (False, (1, 35, 330)),
    ],
    ids=str,
)
@pytest.mark.parametrize(('upsample_cfg', 'downsample_cfg'), FORMS, ids=str)
def test_is_the_definition(upsample_cfg, downsample_cfg, training, shape):
    net = build_small(upsample_cfg, downsample_cfg).double().train(training)
    plain = plain_of(net, upsample_cfg, downsample_cfg)
    x = make_inputs(*shape, dtype=torch.float64).requires_grad_()
    out = net(x)
    expected = plain(x)
    assert out.shape == (shape[0], 1, *shape[1:])
    assert_close_to_reference(out.detach(), expected.detach(), margin=(2, 2), tolerance=1e-10)

    grad = torch.randn_like(out)
    parameters = dict(net.named_parameters())
    got = torch.autograd.grad(out, [x, *parameters.values()], grad)
    leaves = [x, *(plain.state[name] for name in parameters)]
    exact = torch.autograd.grad(expected, leaves, grad)
    assert_close_to_reference(got[0], exact[0], margin=(4, 4), tolerance=1e-8, what='gradient')
    largest = max(gradient.abs().max() for gradient in exact[1:])
    for name, a, b in zip(parameters, got[1:], exact[1:], strict=True):
        assert (a - b).abs().max() <= 1e-8 * max(b.abs().max(), 1e-6 * largest), name

    # Each layer has run once, and the pooled one of a batch of one has not counted.
    for name, buffer in net.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            torch.testing.assert_close(buffer, plain.state[name], rtol=1e-10, atol=1e-12, msg=name)
        elif name.endswith('num_batches_tracked') and 'aspp.pooled' not in name:
            assert buffer == int(training), name


@pytest.mark.parametrize(
    ('training', 'shape'),
    [(False, (2, 16, 23, 21)), (True, (2, 16, 23, 21)), (True, (1, 16, 40, 38))],
    ids=str,
)
def test_pyramid(training, shape):
    """On maps that are larger than its dilations."""
    net = build_small().double().train(training)
    plain = plain_of(net, BILINEAR, MAX_POOL)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out, expected = net.aspp(x), plain.aspp(x)
    assert_close_to_reference(out.detach(), expected.detach(), margin=(6, 6), tolerance=1e-11)
    grad = torch.randn_like(out)
    (got,), (exact,) = (torch.autograd.grad(y, x, grad) for y in (out, expected))
    assert_close_to_reference(got, exact, margin=(6, 6), tolerance=1e-10)


def test_dropout():
    net = build_small()
    (dropout,) = (m for m in net.modules() if isinstance(m, nn.Dropout))
    dropout.p = 0.5
    x = torch.randn(2, 16, 23, 21)
    out = net.train().aspp(x)
    assert out.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    dropout.p = 0.0
    torch.testing.assert_close(out[out != 0], 2 * net.aspp(x)[out != 0])
    dropout.p = 0.5
    assert not net.eval().aspp(x).eq(0).any()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(('upsample_cfg', 'downsample_cfg'), FORMS, ids=str)
def test_single_precision(upsample_cfg, downsample_cfg, layout):
    net = build_small(upsample_cfg, downsample_cfg).eval()
    x = make_inputs(2, 45, 38)
    with torch.no_grad():
        expected = plain_of(net, upsample_cfg, downsample_cfg)(x.double())
        out = net(x.contiguous(memory_format=layout))
    assert out.dtype == torch.float32
    assert_close_to_reference(out, expected, tolerance=2e-5)


def test_the_forms_differ():
    """Neither the upsampler nor the downsampling can be mistaken for another."""
    x = make_inputs(2, 37, 51, dtype=torch.float64)
    state = build_small(PAIRED_A2U, PAIRED).state_dict()
    results = []
    for upsample_cfg, downsample_cfg in (
        (BILINEAR, MAX_POOL),
        (PAIRED_A2U, MAX_POOL),
        (BILINEAR, CONV),
        (PAIRED_A2U, PAIRED),
    ):
        net = build_small(upsample_cfg, downsample_cfg)
        # All of them have the same keys, but for the upsamplers'.
        net.load_state_dict({key: value for key, value in state.items() if key in net.state_dict()})
        with torch.no_grad():
            results.append(net.double().eval()(x))
    for i, one in enumerate(results):
        for other in results[:i]:
            assert (one - other).norm() > 1e-2 * one.norm()


def test_max_pooling_is_the_default():
    net, default = build_small(BILINEAR, MAX_POOL), build_small(BILINEAR, None)
    default.load_state_dict(net.state_dict())
    x = make_inputs(2, 37, 51)
    with torch.no_grad():
        assert torch.equal(default.eval()(x), net.eval()(x))


def record_calls(net):
    """The arguments of every upsampler's forward, by its step, as they will come."""
    calls = {}
    for step, upsampler in net.upsamplers.items():

        def keep(module, args, kwargs, step=step):
            assert step not in calls
            calls[step] = (*args, *kwargs.values())

        upsampler.register_forward_pre_hook(keep, with_kwargs=True)
    return calls


@pytest.mark.parametrize(('upsample_cfg', 'downsample_cfg'), FORMS, ids=str)
def test_guides(upsample_cfg, downsample_cfg):
    net = build_small(upsample_cfg, downsample_cfg).double().eval()
    calls = record_calls(net)
    plain = plain_of(net, upsample_cfg, downsample_cfg)
    x = make_inputs(2, 37, 51, dtype=torch.float64)
    with torch.no_grad():
        net(x)
        plain(x)
    assert list(calls) == list(STEPS)
    sizes = dict(zip(STEPS, [(5, 7), (10, 13), (19, 26), (37, 51)], strict=True))
    widths = dict(zip(STEPS, [16, 12, 8, 8], strict=True))
    for step, (feature, guide, *_) in calls.items():
        assert guide.shape == (2, widths[step], *sizes[step])
        assert feature.shape == (2, widths[step], *(-(-side // 2) for side in sizes[step]))
        torch.testing.assert_close(guide, plain.guides[step], rtol=1e-10, atol=1e-10)


def test_the_last_guide_is_the_stems():
    net = build_small(SAPA).eval()
    calls = record_calls(net)
    x = make_inputs(1, 32, 48)
    with torch.no_grad():
        net(x)
        stem = net.backbone.bn1(net.backbone.conv1(x))
    torch.testing.assert_close(calls['c2_c1'][1], F.leaky_relu(stem, 0.01))


def test_strided_guides_are_what_is_added():
    net = build_small(SAPA, CONV).eval()
    calls, skips = record_calls(net), {}
    for step in STEPS:
        net.skips[step].register_forward_hook(
            lambda _, args, out, step=step: skips.update({step: out})
        )
    with torch.no_grad():
        net(make_inputs(1, 32, 48))
    for step in STEPS:
        assert torch.equal(calls[step][1], skips[step])


@pytest.mark.parametrize(
    'upsample_cfg', [INDEX_NET, PAIRED_A2U, dict(type='MaxUnpooling')], ids=str
)
def test_a_pair_encodes_once(upsample_cfg):
    net = build_small(upsample_cfg, PAIRED)
    calls, encodings = record_calls(net), {step: [] for step in STEPS}
    for step, upsampler in net.upsamplers.items():

        def spy(guide, encode=upsampler.encode, step=step):
            encodings[step].append(encode(guide))
            return encodings[step][-1]

        upsampler.encode = spy
    net(make_inputs(2, 32, 48))
    for step in STEPS:
        assert len(encodings[step]) == 1
        assert calls[step][2] is encodings[step][0]


def statistics(net):
    return {
        name: buffer.clone()
        for name, buffer in net.named_buffers()
        if name.endswith(('running_mean', 'running_var'))
    }


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norm_eval(norm_eval):
    net = build_small(INDEX_NET, PAIRED, norm_eval=norm_eval)
    before = statistics(net)
    for _ in range(2):
        net.eval()
        net.train()
        net(make_inputs(2, 32, 48))
    moved = {name: not torch.equal(before[name], value) for name, value in statistics(net).items()}
    backbone = [name for name in moved if name.startswith('backbone.')]
    others = [name for name in moved if not name.startswith('backbone.')]
    assert len(backbone) == 2 * 13
    # The upsamplers are not the encoder.
    assert any(name.startswith('upsamplers.') for name in others)
    assert [moved[name] for name in backbone] == [not norm_eval] * len(backbone)
    assert all(moved[name] for name in others)


def test_norm_eval_trains_everything_else():
    net = build_small(norm_eval=True).train()
    assert net.training
    assert net.backbone.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    expected = plain_of(net.eval(), BILINEAR, MAX_POOL)
    x = make_inputs(2, 32, 48)
    kept = []
    net.train().backbone.register_forward_hook(lambda _, args, out: kept.append(out.last))
    net(x)
    assert_close_to_reference(
        kept[0].detach(), expected.encode(x.double())[1].detach(), tolerance=2e-5
    )


def test_a_batch_of_one_keeps_the_pooled_statistics():
    net = build_small().train()
    before = statistics(net)
    net(make_inputs(1, 32, 48)).sum().backward()
    for name, value in statistics(net).items():
        assert torch.equal(before[name], value) == ('aspp.pooled' in name), name
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_modes():
    net = build_small(SAPA).eval()
    inputs = make_inputs(2, 32, 48)
    samples = samples_of(inputs, training=True)
    with torch.no_grad():
        alpha = net.estimate(inputs)
        assert torch.equal(net(inputs), alpha)
        assert torch.equal(net(inputs, samples, mode='tensor'), alpha)
        losses = net(inputs, samples, mode='loss')
    truth = torch.stack([sample.gt_alpha.data for sample in samples])
    unknown = torch.stack([sample.trimap.data == 128 for sample in samples])
    assert 0.2 < unknown.float().mean() < 0.5
    colours = [
        torch.stack([getattr(s, name).data / 255 for s in samples]) for name in ('gt_fg', 'gt_bg')
    ]
    assert losses.keys() == {'loss_alpha', 'loss_composition'}
    torch.testing.assert_close(losses['loss_alpha'], 0.5 * alpha_loss(alpha, truth, unknown))
    expected = composition_loss(alpha, truth, *colours, unknown)
    torch.testing.assert_close(losses['loss_composition'], 0.5 * expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(('upsample_cfg', 'downsample_cfg'), [*FORMS, (SAPA, MAX_POOL)], ids=str)
def test_autocast(upsample_cfg, downsample_cfg, dtype):
    net = build_small(upsample_cfg, downsample_cfg).train()
    inputs = make_inputs(2, 64, 48)
    samples = samples_of(inputs, training=True)
    exact = net(inputs, samples, mode='loss')
    with torch.autocast('cpu', dtype):
        losses = net(inputs, samples, mode='loss')
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.0)
    # It is scaled as a gradient scaler does, so that small gradients are no zeros in float16.
    (2**12 * sum(losses.values())).backward()
    # A2U's sigmoids are 1 in float16 where they are close to it in bfloat16.
    saturated = upsample_cfg['type'] == 'A2U' and dtype == torch.float16
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
        assert saturated or parameter.grad.any(), name


@pytest.mark.parametrize('seed', range(4))
def test_the_last_convolution_begins_with_a_positive_sum(seed):
    torch.manual_seed(seed)
    net = build_small()
    net.init_weights()
    assert net.head[1].weight.sum() >= 0
    assert net.head[1].weight.min() < 0  # the kernel as a whole has another sign, or none
    with torch.no_grad():
        net.head[1].weight.neg_()
    net.init_weights()  # it does nothing the second time
    assert net.head[1].weight.sum() <= 0


def test_a_published_last_convolution_keeps_its_sign(tmp_path):
    weights = build_small().state_dict()
    weights['head.1.weight'] = -weights['head.1.weight'].abs()
    torch.save(weights, tmp_path / 'net.pth')
    net = build_small(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'net.pth')))
    net.init_weights()
    assert net.head[1].weight.equal(weights['head.1.weight'])


def test_initialization():
    net = GuidedMattingNet(dict(type='SAPA'))
    net.init_weights()
    gain = (2 / (1 + 0.01**2)) ** 0.5
    for name, fans in {
        'blocks.c5_c4.0.conv1': 9 * (256 + 128),
        'blocks.c2_c1.1.conv1': 9 * (32 + 32),
        'skips.c5_c4.0': 9 * (128 + 256),
        'aspp.join.0': 1280 + 256,
        'backbone.layer3.1.conv1': 9 * (256 + 256),
        'backbone.conv1': 49 * (64 + 4),
    }.items():
        weight = net.get_submodule(name).weight.detach()
        std = gain * (2 / fans) ** 0.5
        assert weight.std().item() == pytest.approx(std, rel=0.04), name
        assert weight.abs().max() > 3 * std, name  # it is no uniform distribution
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.weight.eq(1).all()
            assert layer.bias.eq(0).all()
    for step in STEPS:
        weights = [p for name, p in net.upsamplers[step].named_parameters() if p.dim() > 1]
        assert weights
        for weight in weights:
            assert weight.std().item() == pytest.approx(0.02, rel=0.06), step


def test_an_upsampler_keeps_its_own_initialization():
    own = dict(type='IndexNet', init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
    net = build_small(own, PAIRED)
    net.init_weights()
    assert net.upsamplers['c3_c2'].encoders[0][0].weight.eq(0.5).all()
    assert not net.blocks['c3_c2'][0].conv1.weight.eq(0.5).any()


def test_is_registered_and_built():
    cfg = dict(
        type='GuidedMattingNet',
        upsample_cfg=dict(type='SAPA', embed_dims=4),
        step_cfgs=dict(c3_c2=dict(embed_dims=6), c2_c1=dict(type='IndexNet')),
        backbone=dict(channels=CHANNELS, blocks=BLOCKS),
    )
    net = MODELS.build(cfg)
    assert type(net) is GuidedMattingNet
    kinds = {step: type(upsampler).__name__ for step, upsampler in net.upsamplers.items()}
    assert kinds == dict(c5_c4='SAPA', c4_c3='SAPA', c3_c2='SAPA', c2_c1='IndexNet')
    assert [net.upsamplers[step].embed_dims for step in STEPS[:3]] == [4, 4, 6]
    assert cfg['backbone'] == dict(channels=CHANNELS, blocks=BLOCKS)  # nothing was added to it
    assert net(make_inputs(1, 19, 33)).shape == (1, 1, 19, 33)
