import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads import UPerHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from testing_hosts import (
    EVEN_SIZES,
    ODD_SIZES,
    assert_gradients,
    assert_same_bits,
    load_parent,
    make_features,
)

from sapa_mm.segmentation import GuidedUPerHead

pytestmark = pytest.mark.filterwarnings('ignore:When align_corners=True')

CHANNELS = [8, 12, 16, 20]
OPTIONS = dict(
    in_channels=CHANNELS,
    in_index=[0, 1, 2, 3],
    pool_scales=(1, 2),
    channels=6,
    num_classes=5,
    dropout_ratio=0.0,
    norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
)
STEPS = ['c4_c3', 'c3_c2', 'c2_c1']
GATED = dict(type='SAPA', similarity='gated')


def build(cls=GuidedUPerHead, **options):
    return cls(**{**OPTIONS, **options})


@pytest.mark.parametrize('sizes', [ODD_SIZES, EVEN_SIZES])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('align_corners', [False, True])
def test_bilinear_is_the_parent_bit_for_bit(sizes, training, align_corners):
    cfg = dict(type='bilinear', align_corners=align_corners)
    parent = build(UPerHead, align_corners=align_corners).train(training)
    ours = build(upsample_cfg=cfg, align_corners=align_corners).train(training)
    assert load_parent(ours, parent) == []
    inputs = make_features(CHANNELS, sizes)
    assert_same_bits(ours(inputs), parent(inputs))
    assert_same_bits(list(ours.state_dict().values()), list(parent.state_dict().values()))


def test_each_lateral_is_guided_by_the_next():
    parent, head = build(UPerHead).eval(), build(upsample_cfg=GATED).eval()
    assert len(load_parent(head, parent)) == 3 * 12
    for p in head.upsamplers.parameters():
        torch.nn.init.normal_(p, std=0.3)
    assert list(head.upsamplers) == STEPS
    inputs = make_features(CHANNELS)
    levels = [conv(x) for conv, x in zip(head.lateral_convs, inputs[:3], strict=True)]
    levels.append(head.psp_forward(inputs))
    for i, step in ((2, 'c4_c3'), (1, 'c3_c2'), (0, 'c2_c1')):
        levels[i] = levels[i] + head.upsamplers[step](levels[i + 1], levels[i])
    outs = [conv(x) for conv, x in zip(head.fpn_convs, levels[:3], strict=True)] + levels[3:]
    outs = [resize(x, ODD_SIZES[0], mode='bilinear', align_corners=False) for x in outs]
    expected = head.conv_seg(head.fpn_bottleneck(torch.cat(outs, 1)))
    got = head(inputs)
    assert got.shape == (2, 5, *ODD_SIZES[0])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert (got - parent(inputs)).abs().max() > 1e-3


def test_every_parameter_gets_a_gradient():
    head = build(upsample_cfg=GATED)
    assert_gradients(head.upsamplers, head(make_features(CHANNELS)))


def test_steps_can_differ():
    step_cfgs = dict(c4_c3=dict(kernel_size=3), c2_c1=dict(type='nearest'))
    up = build(upsample_cfg=dict(type='SAPA'), step_cfgs=step_cfgs).upsamplers
    assert (up['c4_c3'].kernel_size, up['c3_c2'].kernel_size) == (3, 5)
    assert up['c2_c1'].layer.mode == 'nearest'


def test_fewer_levels():
    options = dict(in_channels=CHANNELS[2:], in_index=[2, 3])
    head = build(upsample_cfg=dict(type='SAPA'), **options)
    assert list(head.upsamplers) == ['c2_c1']
    assert head(make_features(CHANNELS)).shape == (2, 5, *ODD_SIZES[2])


def test_found_by_name():
    with DefaultScope.overwrite_default_scope('mmseg'):
        head = MODELS.build(dict(OPTIONS, type='GuidedUPerHead', upsample_cfg=dict(type='SAPA')))
    assert type(head) is GuidedUPerHead


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(), TypeError, 'upsample_cfg: expected a dict with a type, got None'),
        (dict(upsample_cfg=dict(type='SAPPA')), ValueError, "upsample_cfg: .*got 'SAPPA'"),
        (
            dict(upsample_cfg=GATED, step_cfgs=dict(c4_c2={})),
            ValueError,
            "step_cfgs: expected steps of c4_c3, c3_c2, c2_c1, got 'c4_c2'",
        ),
    ],
)
def test_bad_config(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)
