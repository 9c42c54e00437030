"""The necks of YOLOX and RTMDet: the same tests, for they are the same host."""

import pytest
import torch
from mmdet.models.necks import YOLOXPAFPN, CSPNeXtPAFPN
from mmdet.registry import MODELS
from testing_hosts import assert_gradients, assert_same_bits, load_parent, make_features
from torch import nn
from torch.nn import functional as F

from sapa_mm.detection import GuidedCSPNeXtPAFPN, GuidedYOLOXPAFPN
from sapa_mm.ops import reference
from sapa_mm.visualization import record_upsampling

PAIRS = {
    'yolox': (YOLOXPAFPN, GuidedYOLOXPAFPN),
    'rtmdet': (CSPNeXtPAFPN, GuidedCSPNeXtPAFPN),
}
CHANNELS = [8, 12, 16]
EVEN_SIZES = ((16, 12), (8, 6), (4, 3))
#: Features of a 97x65 image at strides 8, 16 and 32, which the stock necks cannot take.
ODD_SIZES = ((13, 9), (7, 5), (4, 3))
OPTIONS = [
    dict(),
    dict(num_csp_blocks=2, use_depthwise=True),
    dict(norm_cfg=dict(type='GN', num_groups=2), act_cfg=dict(type='ReLU')),
]
SAPA = dict(type='SAPA', similarity='gated')


@pytest.fixture(params=list(PAIRS))
def pair(request):
    return PAIRS[request.param]


def build(cls, channels=CHANNELS, **options):
    neck = cls(channels, 6, **{'num_csp_blocks': 1, **options})
    neck.init_weights()
    return neck


def outputs_and_gradients(neck, feats):
    """The outputs, and the gradients of their squares to the features and to every parameter."""
    feats = [feat.detach().requires_grad_() for feat in feats]
    outs = neck(feats)
    loss = sum(out.square().sum() for out in outs)
    return outs, torch.autograd.grad(loss, [*feats, *neck.parameters()])


@pytest.mark.parametrize('options', OPTIONS)
def test_nearest_is_the_parent_bit_for_bit(pair, options):
    parent = build(pair[0], **options)
    ours = build(pair[1], upsample_cfg=dict(type='nearest'), **options)
    assert load_parent(ours, parent) == []
    feats = make_features(CHANNELS, EVEN_SIZES)
    for training in (True, False):
        parent.train(training), ours.train(training)
        assert_same_bits(outputs_and_gradients(ours, feats), outputs_and_gradients(parent, feats))
    # Batch norm has counted once, as in the parent.
    assert_same_bits(list(ours.state_dict().values()), list(parent.state_dict().values()))


@pytest.mark.parametrize(
    'cfg', [None, dict(scale_factor=2, mode='nearest'), dict(scale_factor=2, mode='bilinear')]
)
def test_without_a_type_upsample_cfg_means_what_it_means_to_the_parent(pair, cfg):
    options = {} if cfg is None else dict(upsample_cfg=cfg)
    parent, ours = build(pair[0], **options), build(pair[1], **options)
    assert load_parent(ours, parent) == []
    feats = make_features(CHANNELS, EVEN_SIZES)
    assert_same_bits(ours(feats), parent(feats))


@pytest.mark.parametrize('sizes', [EVEN_SIZES, ODD_SIZES])
def test_each_reduced_feature_is_guided_by_the_next(pair, sizes):
    ours = build(pair[1], upsample_cfg=dict(type='SAPA', similarity='inner')).double().eval()
    assert list(ours.upsamplers) == ['c3_c2', 'c2_c1']
    feats = [feat.double() for feat in make_features(CHANNELS, sizes)]
    x, reduced = feats[2], []
    for i, guide in enumerate((feats[1], feats[0])):
        reduced.append(ours.reduce_layers[i](x))
        query, key = (
            F.layer_norm(t.movedim(1, -1), t.shape[1:2]).movedim(-1, 1)
            for t in (guide, reduced[-1])
        )
        up = reference.point_affiliation(query, key, reduced[-1])
        x = ours.top_down_blocks[i](torch.cat((up, guide), dim=1))
    outs = [x]
    for i, above in enumerate(reversed(reduced)):
        outs.append(ours.bottom_up_blocks[i](torch.cat((ours.downsamples[i](outs[-1]), above), 1)))
    got = ours(feats)
    assert [out.shape for out in got] == [(2, 6, *size) for size in sizes]
    for out, conv, expected in zip(got, ours.out_convs, outs, strict=True):
        torch.testing.assert_close(out, conv(expected), rtol=1e-9, atol=1e-10)


def test_four_levels(pair):
    channels = [4, *CHANNELS]
    parent = build(pair[0], channels)
    ours = build(pair[1], channels, upsample_cfg=dict(type='nearest'))
    load_parent(ours, parent)
    assert list(ours.upsamplers) == ['c4_c3', 'c3_c2', 'c2_c1']
    feats = make_features(channels, ((32, 24), *EVEN_SIZES))
    assert_same_bits(ours(feats), parent(feats))


def test_published_checkpoints_lack_only_the_upsamplers(pair):
    ours = build(pair[1], upsample_cfg=SAPA)
    assert len(load_parent(ours, build(pair[0]))) == 2 * 12


def test_every_parameter_gets_a_gradient(pair):
    ours = build(pair[1], upsample_cfg=SAPA)
    assert_gradients(ours.upsamplers, *ours(make_features(CHANNELS, ODD_SIZES)))


def test_the_hosts_initialization_leaves_that_of_the_upsamplers(pair):
    # Kaiming uniform, which the necks ask of all convolutions, would be far from it.
    ours = build(pair[1], [128, 256, 512], upsample_cfg=dict(type='CARAFE'))
    std = ours.upsamplers['c2_c1'].content_encoder.weight.std().item()
    assert std == pytest.approx(0.001, rel=0.1)
    assert ours.reduce_layers[0].conv.weight.std() > 0.02


def test_steps_can_differ(pair):
    steps = dict(c3_c2=dict(kernel_size=3), c2_c1=dict(type='nearest'))
    ours = build(pair[1], upsample_cfg=dict(type='SAPA'), step_cfgs=steps)
    assert ours.upsamplers['c3_c2'].kernel_size == 3
    assert ours.upsamplers['c2_c1'].layer.mode == 'nearest'


def test_pictures_show_the_steps(pair):
    model = nn.Sequential(build(pair[1], upsample_cfg=SAPA))
    feats = make_features(CHANNELS, ODD_SIZES)
    with record_upsampling(model) as recording, torch.no_grad():
        model(feats)
    assert list(recording.steps) == ['c3_c2', 'c2_c1']
    assert torch.equal(recording.steps['c2_c1'].guide, feats[0])


def test_compiles_in_one_graph(pair):
    ours = build(pair[1], upsample_cfg=SAPA).eval()
    feats = make_features(CHANNELS, ODD_SIZES)
    compiled = torch.compile(ours, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(feats), ours(feats), rtol=1e-5, atol=1e-5)


def test_found_by_name(pair):
    assert MODELS.get(f'Guided{pair[0].__name__}') is pair[1]


def test_bad_input(pair):
    with pytest.raises(ValueError, match=r"upsample_cfg: expected type SAPA.*'SAPPA'"):
        build(pair[1], upsample_cfg=dict(type='SAPPA'))
    with pytest.raises(TypeError, match='upsample_cfg: expected a dict'):
        build(pair[1], upsample_cfg='SAPA')
    with pytest.raises(ValueError, match='step_cfgs: expected an upsample_cfg with a type'):
        build(pair[1], step_cfgs=dict(c3_c2=dict(kernel_size=3)))
    with pytest.raises(ValueError, match='step_cfgs: expected steps of c3_c2, c2_c1, got'):
        build(pair[1], upsample_cfg=dict(type='SAPA'), step_cfgs=dict(c4_c3={}))
    with pytest.raises(ValueError, match='inputs: expected 3 features, got 2'):
        build(pair[1], upsample_cfg=dict(type='SAPA'))(make_features(CHANNELS, EVEN_SIZES)[:2])
