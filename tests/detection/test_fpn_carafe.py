"""The host in place of FPN_CARAFE, and the weights of FPN_CARAFE in it and in GuidedFPN.

mmcv's CARAFE has no CPU kernel. Where an ``FPN_CARAFE`` computes here, it is mmdetection's own,
with the kernel's formula, by F.unfold, in place of the one call that cannot run.
"""

import copy
import sys

import pytest
import torch
from mmcv.ops import CARAFEPack
from mmdet.models.necks import FPN_CARAFE
from mmdet.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from testing_hosts import ODD_SIZES, assert_gradients, assert_same_bits, make_features
from torch import nn
from torch.nn import functional as F

from sapa_mm.detection import GuidedFPN, GuidedFPN_CARAFE

CHANNELS = [8, 12, 16, 20]
EVEN_SIZES = ((16, 24), (8, 12), (4, 6), (2, 3))
CARAFE = dict(type='CARAFE')
STEPS = ['c5_c4', 'c4_c3', 'c3_c2', 'c2_c1']
#: num_outs, start_level and end_level, and the steps of each.
LEVELS = [
    (dict(num_outs=4), STEPS[1:]),
    (dict(num_outs=5), STEPS),
    (dict(num_outs=6), ['c6_c5', *STEPS]),
    (dict(num_outs=4, start_level=1), STEPS[:3]),
    (dict(num_outs=2, start_level=1, end_level=2), ['c3_c2']),
]


def formula(x, kernels, kernel_size, groups, scale):
    """What mmcv's kernel computes: every window's sum, weighted by the pixel's kernel."""
    assert groups == 1
    n, channels, h, w = x.shape
    windows = F.unfold(x, kernel_size, padding=kernel_size // 2).view(n, channels, -1, h, w)
    windows = windows.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
    return (windows * kernels[:, None]).sum(dim=2)


@pytest.fixture
def on_cpu(monkeypatch):
    # As an attribute of mmcv.ops the module is hidden by the function of its name.
    monkeypatch.setattr(sys.modules[CARAFEPack.__module__], 'carafe', formula)


def build_stock(**options):
    """An FPN_CARAFE whose kernels are far from uniform."""
    stock = FPN_CARAFE(CHANNELS, 8, **{'num_outs': 5, **options})
    for parameter in stock.parameters():
        nn.init.normal_(parameter, std=0.2)
    return stock


def build(cls=GuidedFPN_CARAFE, **options):
    return cls(CHANNELS, 8, **{'num_outs': 5, 'upsample_cfg': CARAFE, **options})


@pytest.mark.parametrize('sizes', [EVEN_SIZES, ODD_SIZES])
@pytest.mark.parametrize(('options', 'steps'), LEVELS)
def test_published_weights_load_and_give_the_same(on_cpu, options, steps, sizes):
    stock, ours = build_stock(**options), build(**options)
    ours.load_state_dict(stock.state_dict(), strict=True)
    assert list(ours.upsamplers) == steps
    feats = make_features(CHANNELS, sizes)
    got, expected = ours(feats), stock(feats)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    # The top-down path is no rounding error.
    lateral = stock.lateral_convs[0](feats[stock.start_level])
    assert (expected[0] - stock.fpn_convs[0](lateral)).abs().max() > 0.1


@pytest.mark.parametrize('sizes', [EVEN_SIZES, ODD_SIZES])
@pytest.mark.parametrize(('options', 'steps'), LEVELS)
def test_nearest_is_the_parent_bit_for_bit(options, steps, sizes):
    nearest = dict(type='nearest')
    stock, ours = (
        build_stock(upsample_cfg=nearest, **options),
        build(upsample_cfg=nearest, **options),
    )
    ours.load_state_dict(stock.state_dict(), strict=True)
    feats = make_features(CHANNELS, sizes)
    assert_same_bits(ours(feats), stock(feats))


@pytest.mark.parametrize('options', [dict(num_outs=4), dict(num_outs=3, start_level=1)])
def test_guided_fpn_loads_what_has_no_extra_levels(on_cpu, options):
    stock, ours = build_stock(**options), build(GuidedFPN, **options)
    state = stock.state_dict()
    ours.load_state_dict(state, strict=True)
    assert state.keys() == stock.state_dict().keys()
    feats = make_features(CHANNELS)
    torch.testing.assert_close(ours(feats), stock(feats), rtol=1e-5, atol=1e-5)


def test_guided_fpn_names_the_extra_levels_of_a_published_checkpoint():
    result = build(GuidedFPN).load_state_dict(build_stock().state_dict(), strict=False)
    assert result.missing_keys == []
    parts = {key.rsplit('.', 2)[0] for key in result.unexpected_keys}
    assert parts == {'upsample_modules.3', 'lateral_convs.4', 'fpn_convs.4'}
    assert len(result.unexpected_keys) == 8


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
@pytest.mark.parametrize('cls', [GuidedFPN, GuidedFPN_CARAFE])
def test_a_neck_of_a_detector_and_of_a_wrapper(cls, load):
    stock, ours = build_stock(num_outs=4), build(cls, num_outs=4)
    model, published = (
        nn.ModuleDict(dict(model=nn.ModuleDict(dict(neck=n)))) for n in (ours, stock)
    )
    load(model, published.state_dict(), strict=True)
    for i, step in enumerate(('c2_c1', 'c3_c2', 'c4_c3')):
        assert_same_bits(
            list(ours.upsamplers[step].parameters()), list(stock.upsample_modules[i].parameters())
        )


@pytest.mark.parametrize('cls', [GuidedFPN, GuidedFPN_CARAFE])
def test_only_steps_of_carafe_take_its_weights(cls):
    state = build_stock(num_outs=4).state_dict()
    ours = build(cls, num_outs=4, step_cfgs=dict(c3_c2=dict(type='SAPA', similarity='inner')))
    result = ours.load_state_dict(state, strict=False)
    assert result.missing_keys == []
    assert {key[: len('upsample_modules.1')] for key in result.unexpected_keys} == {
        'upsample_modules.1'
    }
    result = build(cls, num_outs=4, upsample_cfg=dict(type='SAPA')).load_state_dict(state, False)
    assert len(result.unexpected_keys) == 3 * 4
    assert all(key.startswith('upsamplers.c') for key in result.missing_keys)
    plain = GuidedFPN(CHANNELS, 8, 4).load_state_dict(state, strict=False)
    assert plain.missing_keys == [] and len(plain.unexpected_keys) == 3 * 4


@pytest.mark.parametrize('cls', [GuidedFPN, GuidedFPN_CARAFE])
def test_another_window_is_a_mismatch_of_sizes(cls):
    ours = build(cls, num_outs=4, upsample_cfg=dict(type='CARAFE', kernel_size=7))
    match = r'size mismatch for upsamplers\.c4_c3\.content_encoder\.weight'
    with pytest.raises(RuntimeError, match=match):
        ours.load_state_dict(build_stock(num_outs=4).state_dict(), strict=False)


def test_its_own_checkpoints_load():
    ours = build()
    assert not any('upsample_modules' in key for key in ours.state_dict())
    build().load_state_dict(copy.deepcopy(ours.state_dict()), strict=True)


def test_every_parameter_gets_a_gradient():
    ours = build(upsample_cfg=dict(type='SAPA', similarity='gated'))
    ours.init_weights()
    assert_gradients(ours, *ours(make_features(CHANNELS)))


def test_initialization_of_either_kind():
    ours = GuidedFPN_CARAFE([64] * 4, 256, 5, upsample_cfg=CARAFE)
    ours.init_weights()
    for up in ours.upsamplers.values():
        assert up.content_encoder.weight.std().item() == pytest.approx(0.001, rel=0.1)
    # Xavier's uniform of a 1x1 convolution from 64 channels to 256.
    assert ours.lateral_convs[0].conv.weight.std().item() == pytest.approx(
        (2 / (64 + 256)) ** 0.5, rel=0.1
    )


def test_bad_input():
    assert MODELS.get('GuidedFPN_CARAFE') is GuidedFPN_CARAFE
    with pytest.raises(TypeError, match='upsample_cfg: expected a dict with a type, got None'):
        build(upsample_cfg=None)
    with pytest.raises(ValueError, match=r'step_cfgs: expected steps of c5_c4, .*, got .c6_c5'):
        build(step_cfgs=dict(c6_c5={}))
    with pytest.raises(ValueError, match='inputs: expected 4 features, got 3'):
        build()(make_features(CHANNELS)[:3])
