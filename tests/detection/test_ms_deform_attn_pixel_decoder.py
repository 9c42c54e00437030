import pytest
import torch
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmengine.config import ConfigDict
from testing_hosts import (
    EVEN_SIZES,
    ODD_SIZES,
    assert_gradients,
    assert_same_bits,
    check_published_head,
    load_parent,
    make_features,
)

from sapa_mm.detection import GuidedMSDeformAttnPixelDecoder

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    pytest.mark.filterwarnings('ignore:Unnecessary conv bias'),
    pytest.mark.filterwarnings('ignore:.*`dropout` in MultiheadAttention'),
]

CHANNELS = [8, 12, 16, 20]
BILINEAR = dict(type='bilinear')
# The encoder leaves two levels out; mmdet needs them of one width.
TWO_STEPS = dict(in_channels=[12, 12, 16, 20], num_levels=2)


def build(cls, num_levels=3, **options):
    attention = dict(embed_dims=8, num_heads=2, num_levels=num_levels, num_points=2)
    ffn = dict(embed_dims=8, feedforward_channels=16, ffn_drop=0.0)
    layer = dict(self_attn_cfg=dict(attention, dropout=0.0, batch_first=True), ffn_cfg=ffn)
    defaults = dict(
        in_channels=CHANNELS,
        feat_channels=8,
        out_channels=6,
        norm_cfg=dict(type='GN', num_groups=4),
        encoder=dict(num_layers=1, layer_cfg=layer),
        positional_encoding=dict(num_feats=4, normalize=True),
    )
    decoder = cls(**ConfigDict({**defaults, **options}))
    # Attention starts with weights of zero, which no difference of positions would show in.
    for p in decoder.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.2)
    return decoder


def build_pair(**options):
    """The parent, and ours that must return the same."""
    parent = build(MSDeformAttnPixelDecoder, **options)
    ours = build(GuidedMSDeformAttnPixelDecoder, upsample_cfg=BILINEAR, **options)
    assert load_parent(ours, parent) == []
    return parent, ours


@pytest.mark.parametrize('sizes', [ODD_SIZES, EVEN_SIZES])
@pytest.mark.parametrize(
    ('options', 'steps'),
    [
        ({}, ['c2_c1']),
        (dict(norm_cfg=dict(type='BN')), ['c2_c1']),
        (dict(norm_cfg=None), ['c2_c1']),
        (dict(num_outs=2), ['c2_c1']),
        (dict(num_outs=4), ['c2_c1']),
        (dict(strides=(2, 6, 12, 24)), ['c2_c1']),
        (TWO_STEPS, ['c3_c2', 'c2_c1']),
        (dict(TWO_STEPS, num_outs=4, strides=(2, 6, 12, 20)), ['c3_c2', 'c2_c1']),
        (dict(num_levels=4), []),
    ],
)
def test_bilinear_is_the_parent_bit_for_bit(options, steps, sizes):
    parent, ours = build_pair(**options)
    assert list(ours.upsamplers) == steps
    feats = make_features(options.get('in_channels', CHANNELS), sizes)
    assert_same_bits(ours(feats), parent(feats))
    assert_same_bits(ours(tuple(feats)), parent(feats))
    # Batch norm has counted once a call, as in the parent.
    assert_same_bits(list(ours.state_dict().values()), list(parent.state_dict().values()))


def test_gradients_are_the_parents():
    parent, ours = build_pair()
    feats = make_features(CHANNELS)
    for decoder in (parent, ours):
        mask, outs = decoder(feats)
        sum(out.square().sum() for out in (mask, *outs)).backward()
    expected = dict(parent.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-5, atol=1e-5, msg=name)


def test_each_output_is_guided_by_the_next_lateral():
    options = dict(TWO_STEPS, num_outs=4)
    parent = build(MSDeformAttnPixelDecoder, **options)
    ours = build(
        GuidedMSDeformAttnPixelDecoder,
        upsample_cfg=dict(type='SAPA', similarity='gated'),
        **options,
    )
    assert len(load_parent(ours, parent)) == 2 * 12
    feats = make_features(TWO_STEPS['in_channels'])
    bilinear, parent_outs = parent(feats)
    expected = list(parent_outs[:2])  # of the encoder
    for i, step in ((1, 'c3_c2'), (0, 'c2_c1')):
        guide = ours.lateral_convs[i](feats[i])
        up = ours.upsamplers[step](expected[-1], guide)
        expected.append(ours.output_convs[i](guide + up))
    mask, outs = ours(feats)
    for got, want in zip(outs, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mask, ours.mask_feature(expected[-1]), rtol=1e-6, atol=1e-6)
    assert mask.shape == bilinear.shape == (2, 6, 25, 17)
    assert (mask - bilinear).abs().max() > 0.01


def test_every_parameter_gets_a_gradient():
    ours = build(GuidedMSDeformAttnPixelDecoder, upsample_cfg=dict(type='SAPA'), **TWO_STEPS)
    assert_gradients(ours.upsamplers, ours(make_features(TWO_STEPS['in_channels']))[0])


def test_steps_can_differ():
    up = build(
        GuidedMSDeformAttnPixelDecoder,
        upsample_cfg=dict(type='SAPA'),
        step_cfgs=dict(c2_c1=dict(kernel_size=3)),
        **TWO_STEPS,
    ).upsamplers
    assert (up['c3_c2'].kernel_size, up['c2_c1'].kernel_size) == (5, 3)


def test_upsamplers_are_initialized_too():
    init_cfg = dict(type='Constant', layer='Linear', val=7.0)
    cfg = dict(type='SAPA', init_cfg=init_cfg)
    ours = build(GuidedMSDeformAttnPixelDecoder, upsample_cfg=cfg)
    ours.init_weights()
    assert (ours.upsamplers['c2_c1'].key_proj.weight == 7).all()
    assert 0.5 < ours.level_encoding.weight.std() < 2


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(), TypeError, 'upsample_cfg: expected a dict with a type, got None'),
        (dict(upsample_cfg=dict(type='SAPPA')), ValueError, "upsample_cfg: .*got 'SAPPA'"),
        (
            dict(upsample_cfg=BILINEAR, step_cfgs=dict(c4_c3={})),
            ValueError,
            "step_cfgs: expected steps of c2_c1, got 'c4_c3'",
        ),
    ],
)
def test_bad_config(options, error, message):
    with pytest.raises(error, match=message):
        build(GuidedMSDeformAttnPixelDecoder, **options)


@pytest.mark.parametrize(
    ('framework', 'config', 'name'),
    [
        (
            'mmseg',
            'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
            'mmdet.GuidedMSDeformAttnPixelDecoder',
        ),
        (
            'mmdet',
            'mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco',
            'GuidedMSDeformAttnPixelDecoder',
        ),
    ],
)
def test_inside_a_published_head(framework, config, name):
    check_published_head(framework, config, name, same_as_parent='bilinear', added=8)
