import pytest
import torch
from mmengine.config import Config
from mmseg.models.decode_heads import SegformerHead
from mmseg.registry import MODELS

from sapa_mm.segmentation import GuidedSegformerHead

CHANNELS = [8, 12, 16, 20]
OPTIONS = dict(
    in_channels=CHANNELS,
    in_index=[0, 1, 2, 3],
    channels=16,
    num_classes=5,
    dropout_ratio=0.0,
    norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
)
STEPS = ['c4_c3', 'c4_c2', 'c4_c1', 'c3_c2', 'c3_c1', 'c2_c1']


def features(height=32, width=48):
    sizes = [(-(-height // s), -(-width // s)) for s in (1, 2, 4, 8)]
    return [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


def build(**options):
    return GuidedSegformerHead(**{**OPTIONS, **options})


@pytest.mark.parametrize('training', [True, False])
def test_nearest_is_the_parent_where_sizes_halve(training):
    parent = SegformerHead(interpolate_mode='nearest', align_corners=None, **OPTIONS)
    ours = build(upsample_cfg=dict(type='nearest'))
    ours.load_state_dict(parent.state_dict(), strict=True)
    inputs = features()
    assert torch.equal(ours.train(training)(inputs), parent.train(training)(inputs))


def test_wiring():
    head = build(upsample_cfg=dict(type='SAPA', similarity='gated')).eval()
    for p in head.upsamplers.parameters():
        torch.nn.init.normal_(p, std=0.3)
    inputs = features(33, 45)
    c1, c2, c3, c4 = (conv(x) for conv, x in zip(head.convs, inputs, strict=True))
    up = head.upsamplers
    from_c4 = up['c4_c1'](up['c4_c2'](up['c4_c3'](c4, c3), c2), c1)
    from_c3 = up['c3_c1'](up['c3_c2'](c3, c2), c1)
    from_c2 = up['c2_c1'](c2, c1)
    expected = head.conv_seg(head.fusion_conv(torch.cat([c1, from_c2, from_c3, from_c4], 1)))
    got = head(inputs)
    assert got.shape == (2, 5, 33, 45)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert list(up) == STEPS


@pytest.mark.parametrize(
    ('options', 'added'),
    [
        (dict(similarity='inner'), 0),
        (dict(similarity='bilinear'), 104_832),
        (dict(similarity='gated'), 155_718),
        # Table 1 of the paper has 2Cd + C a step, neither LayerNorm parameters nor biases.
        (dict(similarity='gated', self_projection='key', bias=False, norm_affine=False), 99_840),
        (dict(similarity='gated', self_projection='key'), 106_374),
        (dict(similarity='gated', self_projection='query'), 106_374),
    ],
)
def test_parameters_added_to_segformer_b1(options, added):
    stock = Config.fromfile(
        'configs/sapa/segformer_mit-b1_sapa-b_8xb2-160k_ade20k-512x512.py'
    ).model.decode_head
    stock.norm_cfg.type = 'BN'
    guided = dict(stock, upsample_cfg=dict(type='SAPA', **options))
    plain = {k: v for k, v in stock.items() if k != 'upsample_cfg'}
    with_sapa = MODELS.build(guided)
    without = MODELS.build(dict(plain, type='SegformerHead'))
    counts = [sum(p.numel() for p in head.parameters()) for head in (with_sapa, without)]
    assert counts[0] - counts[1] == added


def test_published_checkpoints_lack_only_the_upsamplers():
    ours = build(upsample_cfg=dict(type='SAPA'))
    result = ours.load_state_dict(SegformerHead(**OPTIONS).state_dict(), strict=False)
    assert not result.unexpected_keys
    assert len(result.missing_keys) == 6 * 8
    assert all(key.startswith('upsamplers.') for key in result.missing_keys)


def test_every_parameter_gets_a_gradient():
    head = build(upsample_cfg=dict(type='SAPA', similarity='gated'))
    head(features(33, 45)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.upsamplers.parameters())


def test_steps_can_differ():
    head = build(
        upsample_cfg=dict(type='SAPA'),
        step_cfgs=dict(c4_c3=dict(kernel_size=3), c2_c1=dict(type='bilinear')),
    )
    assert [getattr(u, 'kernel_size', None) for u in head.upsamplers.values()] == [
        3,
        5,
        5,
        5,
        5,
        None,
    ]


def test_fewer_levels():
    head = build(in_channels=[8, 12], in_index=[0, 1], upsample_cfg=dict(type='SAPA'))
    assert list(head.upsamplers) == ['c2_c1']
    assert head(features()).shape == (2, 5, 32, 48)


def test_compiles_in_one_graph():
    head = build(upsample_cfg=dict(type='SAPA', similarity='gated')).eval()
    compiled = torch.compile(head, backend='aot_eager', fullgraph=True)
    inputs = features(33, 45)
    torch.testing.assert_close(compiled(inputs), head(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(), TypeError, 'upsample_cfg: expected a dict with a type, got None'),
        (dict(upsample_cfg=dict(kernel_size=3)), ValueError, 'upsample_cfg: .*got none'),
        (dict(upsample_cfg=dict(type='SAPPA')), ValueError, "got 'SAPPA'"),
        (
            dict(upsample_cfg=dict(type='SAPA'), step_cfgs=dict(c5_c4={})),
            ValueError,
            'step_cfgs: expected steps of c4_c3',
        ),
        (
            dict(upsample_cfg=dict(type='SAPA'), interpolate_mode='nearest'),
            ValueError,
            'interpolate_mode: expected upsample_cfg',
        ),
    ],
)
def test_bad_config(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)
