import re

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import nn
from torch.nn import functional as F

from sapa_mm.upsamplers import SAPA, PairedUpsampler, Upsampler, build_steps, build_upsampler
from sapa_mm.upsamplers.build import registered_upsamplers

SIZES = [((4, 5), (8, 10)), ((17, 23), (33, 45)), ((16, 9), (33, 19)), ((5, 5), (5, 5))]


def features(low=(17, 23), high=(33, 45), channels=4, guide_channels=6):
    return torch.randn(2, channels, *low), torch.randn(2, guide_channels, *high)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ['nearest', 'bilinear', 'deconv', 'pixel_shuffle'])
def test_every_layer_of_mmcv_fits_the_guide(kind, size):
    x, guide = features(*size)
    upsampler = build_upsampler(dict(type=kind), 4, 6)
    assert upsampler(x, guide).shape == (2, 4, *size[1])


@pytest.mark.parametrize('size', SIZES)
def test_interpolation_is_that_of_torch(size):
    x, guide = features(*size)
    nearest = build_upsampler(dict(type='nearest'), 4, 6)(x, guide)
    assert torch.equal(nearest, F.interpolate(x, size[1], mode='nearest'))
    for align_corners in (False, True):
        cfg = dict(type='bilinear', align_corners=align_corners)
        expected = F.interpolate(x, size[1], mode='bilinear', align_corners=align_corners)
        assert torch.equal(build_upsampler(cfg, 4, 6)(x, guide), expected)


@pytest.mark.parametrize('kind', ['deconv', 'pixel_shuffle'])
def test_learnt_layers_are_cropped_at_the_far_edge(kind):
    x, guide = features()
    upsampler = build_upsampler(dict(type=kind), 4, 6)
    assert torch.equal(upsampler(x, guide), upsampler.layer(x)[:, :, :33, :45])


@pytest.mark.parametrize('ratio', [1, 2, 3, 4])
def test_deconvolution_multiplies_the_size_by_its_stride(ratio):
    x, guide = features((5, 7), (5 * ratio, 7 * ratio))
    upsampler = build_upsampler(dict(type='deconv', scale_factor=ratio), 4, 6)
    assert upsampler.layer.stride == (ratio, ratio)
    assert upsampler.layer(x).shape == upsampler(x, guide).shape == (2, 4, 5 * ratio, 7 * ratio)


@pytest.mark.parametrize('kernel_size', range(1, 9))
@pytest.mark.parametrize('ratio', [2, 3, 4, 5])
def test_deconvolution_fits_its_padding_to_its_kernel(ratio, kernel_size):
    cfg = dict(type='deconv', scale_factor=ratio, kernel_size=kernel_size)
    upsampler = build_upsampler(cfg, 4)
    assert upsampler.layer(torch.ones(1, 4, 5, 7)).shape == (1, 4, 5 * ratio, 7 * ratio)


def test_options_of_mmcv_are_kept():
    layer = build_upsampler(dict(type='deconv', kernel_size=2, stride=2, padding=0), 4).layer
    assert isinstance(layer, nn.ConvTranspose2d)
    assert layer.kernel_size == (2, 2)
    layer = build_upsampler(dict(type='deconv', kernel_size=2, stride=2), 4).layer
    assert layer(torch.ones(1, 4, 5, 7)).shape == (1, 4, 10, 14)
    layer = build_upsampler(dict(type='pixel_shuffle', scale_factor=3, upsample_kernel=1), 4).layer
    assert layer.upsample_conv.weight.shape == (36, 4, 1, 1)


def test_sapa_gets_the_channels_of_both_features():
    upsampler = build_upsampler(dict(type='SAPA', embed_dims=8), 4, 6)
    assert isinstance(upsampler, SAPA)
    assert upsampler.key_proj.weight.shape == (8, 4)
    assert upsampler.query_proj.weight.shape == (8, 6)


def test_a_module_of_the_users_own():
    class Doubled(nn.Module):
        def __init__(self, in_channels, guide_channels, gain):
            super().__init__()
            self.gain = gain

        def forward(self, x, guide):
            return self.gain * F.interpolate(x, guide.shape[2:])

    x, guide = features()
    by_class = build_upsampler(dict(type=Doubled, gain=2.0), 4, 6)
    MODELS.register_module(name='DoubledForTest', module=Doubled, force=True)
    by_name = build_upsampler(dict(type='DoubledForTest', gain=2.0), 4, 6)
    expected = 2 * F.interpolate(x, (33, 45))
    assert torch.equal(by_class(x, guide), expected)
    assert torch.equal(by_name(x, guide), expected)


def test_a_module_of_a_frameworks_registry():
    class Plain(nn.Module):
        def __init__(self, in_channels, guide_channels):
            super().__init__()

    MMSEG_MODELS.register_module(name='PlainForTest', module=Plain, force=True)
    with DefaultScope.overwrite_default_scope('mmseg'):
        assert isinstance(build_upsampler(dict(type='PlainForTest'), 4), Plain)
    with pytest.raises(ValueError, match='PlainForTest'):
        build_upsampler(dict(type='PlainForTest'), 4)


@pytest.mark.parametrize(
    ('cfg', 'error', 'message'),
    [
        (None, TypeError, 'upsample_cfg: expected a dict'),
        ('SAPA', TypeError, "upsample_cfg: expected a dict with a type, got 'SAPA'"),
        (dict(), ValueError, 'upsample_cfg: expected type SAPA, .*nearest.*got none'),
        (dict(mode='nearest'), ValueError, 'upsample_cfg: .*got none'),
        (dict(type='SAPPA'), ValueError, "SAPA, .*nearest, bilinear, .*got 'SAPPA'"),
        (dict(type='SAPA', similarity='dot'), ValueError, "similarity: .*inner.*got 'dot'"),
        (dict(type='SAPA', mode='nearest'), TypeError, 'mode'),
        (dict(type='deconv', stride=(2, 2)), TypeError, 'stride: expected a positive int'),
        (dict(type='deconv', stride=2, scale_factor=2), ValueError, 'scale_factor: .*got both'),
        (dict(type='nearest', align_corners=True), ValueError, 'align_corners: .*bilinear'),
        (dict(type='pixel_shuffle', scale_factor=0), ValueError, 'scale_factor: expected'),
        (dict(type='pixel_shuffle', out_channels=8), ValueError, 'out_channels: expected 4'),
    ],
)
def test_bad_config(cfg, error, message):
    with pytest.raises(error, match=message):
        build_upsampler(cfg, 4, 4)


def test_an_unknown_type_is_told_the_registered_ones():
    class Mine(Upsampler):
        pass

    def offered():
        with pytest.raises(ValueError) as error:
            build_upsampler(dict(type='SAPPA'), 4)
        (names,) = re.findall('expected type (.*) or a module', str(error.value))
        return names

    ours = 'SAPA, A2U, CARAFE, DySample, FADE, FADELite, IndexNet, MaxUnpooling, '
    others = 'SoftClusteringUpsampler, nearest, bilinear, deconv, pixel_shuffle'
    assert offered() == ours + others
    assert registered_upsamplers(PairedUpsampler) == ['A2U', 'IndexNet', 'MaxUnpooling']
    MMSEG_MODELS.register_module(name='OursForTest', module=Mine)
    try:
        assert offered() == ours + others
        with DefaultScope.overwrite_default_scope('mmseg'):
            assert offered() == f'{ours}OursForTest, {others}'
    finally:
        MMSEG_MODELS.module_dict.pop('OursForTest')


@pytest.mark.parametrize('kind', ['nearest', 'deconv', 'SAPA'])
def test_bad_features(kind):
    upsampler = build_upsampler(dict(type=kind), 4, 6)
    x, guide = features()
    with pytest.raises(ValueError, match='x: expected 4 channels, got 6'):
        upsampler(guide, guide)
    with pytest.raises(ValueError, match='guide: expected a size of at least'):
        upsampler(x, guide[:, :, :16])
    with pytest.raises(ValueError, match='guide: expected batch size 2'):
        upsampler(x, guide[:1])
    with pytest.raises(ValueError, match='x: expected 4 dimensions'):
        upsampler(x[0], guide)
    with pytest.raises(TypeError, match='guide: expected a tensor'):
        upsampler(x, [guide])


def test_steps_merge_and_replace():
    steps = {'a': (4, 4), 'b': (4, 6), 'c': (4, 4)}
    overrides = {'b': dict(kernel_size=3), 'c': dict(type='nearest')}
    built = build_steps(dict(type='SAPA', embed_dims=8), overrides, steps)
    assert list(built) == ['a', 'b', 'c']
    assert (built['a'].kernel_size, built['b'].kernel_size) == (5, 3)
    assert built['b'].embed_dims == 8
    assert built['b'].guide_channels == 6
    assert not list(built['c'].parameters())


def test_steps_to_skip_have_no_upsampler():
    steps = {'a': (4, 4), 'b': (4, 6), 'c': (4, 4)}
    built = build_steps(dict(type='SAPA'), {'b': dict(kernel_size=3)}, steps, skip=('b', 'x'))
    assert list(built) == ['a', 'c']
    with pytest.raises(ValueError, match="step_cfgs: expected steps of a, b, c, got 'd'"):
        build_steps(dict(type='SAPA'), {'d': {}}, steps, skip=('b',))


def test_bad_steps():
    with pytest.raises(ValueError, match="step_cfgs: expected steps of a, b, got 'c'"):
        build_steps(dict(type='SAPA'), {'c': {}}, {'a': (4, 4), 'b': (4, 4)})
    with pytest.raises(TypeError, match="step_cfgs\\['a'\\]: expected a dict, got 3"):
        build_steps(dict(type='SAPA'), {'a': 3}, {'a': (4, 4)})
    with pytest.raises(TypeError, match='step_cfgs: expected a dict of dicts'):
        build_steps(dict(type='SAPA'), 3, {'a': (4, 4)})
