"""GuidedFPN of both frameworks and GuidedPAFPN: the same tests, for they are the same host."""

import mmdet.models.necks
import mmseg.models.necks
import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS

import sapa_mm.detection
import sapa_mm.segmentation
from sapa_mm.ops import reference

PAIRS = {
    'mmseg': (mmseg.models.necks.FPN, sapa_mm.segmentation.GuidedFPN),
    'mmdet': (mmdet.models.necks.FPN, sapa_mm.detection.GuidedFPN),
    'PAFPN': (mmdet.models.necks.PAFPN, sapa_mm.detection.GuidedPAFPN),
}
CHANNELS = [8, 12, 16, 20]
OPTIONS = [
    dict(num_outs=4),
    dict(num_outs=5),
    dict(num_outs=5, start_level=1, add_extra_convs='on_input'),
    dict(num_outs=6, start_level=1, add_extra_convs='on_output', relu_before_extra_convs=True),
    dict(num_outs=6, add_extra_convs='on_lateral', relu_before_extra_convs=True),
    dict(num_outs=5, add_extra_convs=True, no_norm_on_lateral=True, norm_cfg=dict(type='BN')),
    dict(num_outs=4, conv_cfg=dict(type='Conv2d'), act_cfg=dict(type='ReLU')),
]


@pytest.fixture(params=list(PAIRS))
def pair(request):
    return PAIRS[request.param]


@pytest.fixture(params=['mmseg', 'mmdet'])
def fpn_pair(request):
    return PAIRS[request.param]


def features(sizes=((33, 45), (17, 23), (9, 12), (5, 6))):
    return [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


def build(cls, **options):
    neck = cls(CHANNELS, 8, **{'num_outs': 4, **options})
    neck.init_weights()
    return neck


def assert_nearest_is_the_parent(pair, inputs, options):
    plain, guided = pair
    parent = build(plain, **options)
    ours = build(guided, upsample_cfg=dict(type='nearest'), **options)
    ours.load_state_dict(parent.state_dict(), strict=True)
    expected, got = parent(inputs), ours(inputs)
    assert isinstance(got, tuple)
    assert len(got) == len(expected) == options['num_outs']
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize('options', OPTIONS)
def test_nearest_is_the_parent_bit_for_bit(pair, options):
    assert_nearest_is_the_parent(pair, features(), options)


@pytest.mark.parametrize('options', OPTIONS)
def test_nearest_is_the_parent_at_equal_sizes(fpn_pair, options):
    # PAFPN's bottom-up path halves, whatever the sizes.
    assert_nearest_is_the_parent(fpn_pair, features(((32, 48),) * 4), options)


def test_levels_that_are_not_used(pair):
    plain, guided = pair
    # end_level is exclusive in mmseg and inclusive in mmdet.
    end = 3 if plain is PAIRS['mmseg'][0] else 2
    options = dict(num_outs=2, start_level=1, end_level=end)
    parent, ours = (
        build(plain, **options),
        build(guided, upsample_cfg=dict(type='nearest'), **options),
    )
    assert list(ours.upsamplers) == ['c3_c2']
    ours.load_state_dict(parent.state_dict())
    inputs = features()
    assert all(torch.equal(a, b) for a, b in zip(ours(inputs), parent(inputs), strict=True))


@pytest.mark.parametrize(
    'cfg', [dict(mode='bilinear', align_corners=False), dict(scale_factor=2.0)]
)
def test_without_a_type_upsample_cfg_means_what_it_means_to_the_parent(fpn_pair, cfg):
    plain, guided = fpn_pair
    parent, ours = build(plain, upsample_cfg=cfg), build(guided, upsample_cfg=cfg)
    ours.load_state_dict(parent.state_dict(), strict=True)
    inputs = features(((32, 48), (16, 24), (8, 12), (4, 6)))
    assert all(torch.equal(a, b) for a, b in zip(ours(inputs), parent(inputs), strict=True))


def test_default_is_the_parent(pair):
    plain, guided = pair
    parent, ours = build(plain), build(guided)
    ours.load_state_dict(parent.state_dict(), strict=True)
    inputs = features()
    assert all(torch.equal(a, b) for a, b in zip(ours(inputs), parent(inputs), strict=True))


def test_each_lateral_is_guided_by_the_next(pair):
    _, guided = pair
    neck = build(guided, upsample_cfg=dict(type='SAPA', similarity='inner')).double()
    inputs = [x.double() for x in features()]
    merged = [conv(x) for conv, x in zip(neck.lateral_convs, inputs, strict=True)]
    for i in (3, 2, 1):
        x, guide = merged[i], merged[i - 1]
        query, key = (
            torch.nn.functional.layer_norm(t.movedim(1, -1), (8,)).movedim(-1, 1)
            for t in (guide, x)
        )
        merged[i - 1] = guide + reference.point_affiliation(query, key, x)
    expected = [conv(x) for conv, x in zip(neck.fpn_convs, merged, strict=True)]
    if guided is sapa_mm.detection.GuidedPAFPN:
        for i in (0, 1, 2):
            expected[i + 1] = expected[i + 1] + neck.downsample_convs[i](expected[i])
        expected[1:] = [neck.pafpn_convs[i](expected[i + 1]) for i in (0, 1, 2)]
    for got, want in zip(neck(inputs), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_published_checkpoints_lack_only_the_upsamplers(pair):
    plain, guided = pair
    ours = build(guided, upsample_cfg=dict(type='SAPA', similarity='gated'))
    result = ours.load_state_dict(build(plain).state_dict(), strict=False)
    assert not result.unexpected_keys
    assert len(result.missing_keys) == 3 * 12
    assert all(key.startswith('upsamplers.c') for key in result.missing_keys)


def test_parameters_of_faster_rcnn(pair):
    _, guided = pair
    for similarity, expected in (('inner', 0), ('bilinear', 52_416), ('gated', 77_859)):
        neck = guided(
            [256, 512, 1024, 2048], 256, 5, upsample_cfg=dict(type='SAPA', similarity=similarity)
        )
        assert sum(p.numel() for p in neck.upsamplers.parameters()) == expected


def test_every_parameter_gets_a_gradient(pair):
    _, guided = pair
    neck = build(guided, upsample_cfg=dict(type='SAPA', similarity='gated'))
    sum(out.square().sum() for out in neck(features())).backward()
    assert all(p.grad.abs().sum() > 0 for p in neck.upsamplers.parameters())


def test_the_hosts_initialization_leaves_that_of_sapa(pair):
    _, guided = pair
    neck = build(
        guided,
        upsample_cfg=dict(type='SAPA', embed_dims=512),
        init_cfg=dict(type='Constant', layer=['Conv2d', 'Linear'], val=7.0),
    )
    assert (neck.lateral_convs[0].conv.weight == 7).all()
    assert 0.018 < neck.upsamplers['c4_c3'].key_proj.weight.std() < 0.022


def test_steps_can_differ(pair):
    _, guided = pair
    neck = build(
        guided,
        upsample_cfg=dict(type='SAPA'),
        step_cfgs=dict(c4_c3=dict(kernel_size=3), c2_c1=dict(type='nearest')),
    )
    assert neck.upsamplers['c4_c3'].kernel_size == 3
    assert neck.upsamplers['c3_c2'].kernel_size == 5
    assert neck.upsamplers['c2_c1'].layer.mode == 'nearest'


def test_found_by_name_in_either_framework():
    for registry, name in ((MMSEG_MODELS, 'mmseg'), (MMDET_MODELS, 'mmdet')):
        assert registry.get('GuidedFPN') is PAIRS[name][1]
    assert MMDET_MODELS.get('GuidedPAFPN') is PAIRS['PAFPN'][1]


def test_pafpn_has_no_options_of_interpolation():
    with pytest.raises(ValueError, match=r'upsample_cfg: expected type SAPA.*got none'):
        build(sapa_mm.detection.GuidedPAFPN, upsample_cfg=dict(mode='bilinear'))


def test_bad_input(pair):
    _, guided = pair
    with pytest.raises(ValueError, match=r"upsample_cfg: expected type SAPA.*'SAPPA'"):
        build(guided, upsample_cfg=dict(type='SAPPA'))
    with pytest.raises(TypeError, match='upsample_cfg: expected a dict'):
        build(guided, upsample_cfg='SAPA')
    with pytest.raises(ValueError, match='step_cfgs: expected an upsample_cfg with a type'):
        build(guided, step_cfgs=dict(c4_c3=dict(kernel_size=3)))
    with pytest.raises(ValueError, match='step_cfgs: expected steps of c4_c3, c3_c2, c2_c1'):
        build(guided, upsample_cfg=dict(type='SAPA'), step_cfgs=dict(c5_c4={}))
    with pytest.raises(ValueError, match='inputs: expected 4 features, got 3'):
        build(guided, upsample_cfg=dict(type='SAPA'))(features()[:3])
