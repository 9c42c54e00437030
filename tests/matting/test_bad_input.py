"""What the matting network refuses, and how it says so."""

import pytest
from testing_matting import (
    A2U,
    BILINEAR,
    INDEX_NET,
    PAIRED,
    SAPA,
    build_small,
    make_inputs,
    samples_of,
)
from upsampler_oracles import refused

from sapa_mm.matting import GuidedMattingNet


@pytest.mark.parametrize('downsample', [dict(type='avg_pool'), dict(), dict(type=None)], ids=str)
def test_unknown_downsampling(downsample):
    with refused('downsample_cfg', 'conv', 'max_pool', 'paired', error=ValueError):
        GuidedMattingNet(BILINEAR, downsample_cfg=downsample)


def test_bad_downsampling():
    with refused('downsample_cfg', 'kernel_size', error=ValueError):
        GuidedMattingNet(BILINEAR, downsample_cfg=dict(type='max_pool', kernel_size=3))
    with refused('downsample_cfg', 'conv', error=TypeError):
        GuidedMattingNet(BILINEAR, downsample_cfg='conv')


@pytest.mark.parametrize('upsample_cfg', [BILINEAR, A2U, SAPA], ids=str)
def test_no_pair(upsample_cfg):
    with refused('downsample_cfg', 'paired', 'IndexNet', 'c5_c4', error=ValueError):
        GuidedMattingNet(upsample_cfg, downsample_cfg=PAIRED)


def test_one_step_is_no_pair():
    with refused('downsample_cfg', 'paired', 'c3_c2', error=ValueError):
        GuidedMattingNet(INDEX_NET, dict(c3_c2=BILINEAR), PAIRED)


def test_bad_configs():
    with refused('upsample_cfg', 'nonsense', error=ValueError):
        GuidedMattingNet(dict(type='nonsense'))
    with refused('upsample_cfg', error=TypeError):
        GuidedMattingNet('SAPA')
    with refused('step_cfgs', 'c1_c0', 'c5_c4', 'c2_c1', error=ValueError):
        GuidedMattingNet(BILINEAR, dict(c1_c0=SAPA))
    with refused('norm_eval', 'yes', error=TypeError):
        GuidedMattingNet(BILINEAR, norm_eval='yes')


def test_the_backbone_is_no_dict():
    with refused('backbone', 'dict', 'MattingResNet', error=TypeError):
        GuidedMattingNet(BILINEAR, backbone='MattingResNet')


def test_bad_calls():
    net = build_small().eval()
    inputs = make_inputs(1, 32, 32)
    with refused('mode', 'train', 'tensor', 'loss', 'predict', error=ValueError):
        net(inputs, samples_of(inputs, training=True), mode='train')
    for mode in ('loss', 'predict'):
        with refused('data_samples', error=ValueError):
            net(inputs, mode=mode)


@pytest.mark.parametrize('mode', ['loss', 'predict'])
def test_a_sample_for_every_image(mode):
    """One sample would stand for all of the batch, if nothing were said."""
    net = build_small().eval()
    inputs = make_inputs(2, 32, 32)
    with refused('data_samples', '2', '1', error=ValueError):
        net(inputs, samples_of(inputs, training=True)[:1], mode=mode)


@pytest.mark.parametrize('name', ['gt_alpha', 'gt_fg', 'gt_bg'])
def test_samples_without_the_truth(name):
    inputs = make_inputs(2, 32, 32)
    samples = samples_of(inputs, training=True)
    delattr(samples[1], name)
    with refused(name, error=ValueError):
        build_small()(inputs, samples, mode='loss')
