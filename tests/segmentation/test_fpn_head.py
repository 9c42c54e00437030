import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads import FPNHead
from mmseg.registry import MODELS
from testing_hosts import (
    EVEN_SIZES,
    ODD_SIZES,
    assert_gradients,
    assert_same_bits,
    load_parent,
    make_features,
)

from sapa_mm.segmentation import GuidedFPNHead

pytestmark = pytest.mark.filterwarnings('ignore:When align_corners=True')

# They differ, unlike those of an FPN, so that a wrong level for a guide does not fit.
CHANNELS = [8, 12, 16, 20]
OPTIONS = dict(
    in_channels=CHANNELS,
    in_index=[0, 1, 2, 3],
    feature_strides=[4, 8, 16, 32],
    channels=6,
    num_classes=5,
    dropout_ratio=0.0,
    norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
)
STEPS = ['c2_c1', 'c3_c2', 'c3_c1', 'c4_c3', 'c4_c2', 'c4_c1']
GATED = dict(type='SAPA', similarity='gated')


def build(cls=GuidedFPNHead, **options):
    return cls(**{**OPTIONS, **options})


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('align_corners', [False, True])
def test_bilinear_is_the_parent_where_sizes_halve(training, align_corners):
    cfg = dict(type='bilinear', align_corners=align_corners)
    parent = build(FPNHead, align_corners=align_corners).train(training)
    ours = build(upsample_cfg=cfg, align_corners=align_corners).train(training)
    assert load_parent(ours, parent) == []
    inputs = make_features(CHANNELS, EVEN_SIZES)
    assert_same_bits(ours(inputs), parent(inputs))
    assert_same_bits(list(ours.state_dict().values()), list(parent.state_dict().values()))


def test_dilated_backbone():
    # Levels of one stride need no step between them; two of them share the guide below.
    options = dict(feature_strides=[4, 4, 8, 8])
    sizes = [EVEN_SIZES[i] for i in (0, 0, 1, 1)]
    parent, ours = build(FPNHead, **options), build(upsample_cfg=dict(type='bilinear'), **options)
    load_parent(ours, parent)
    assert list(ours.upsamplers) == ['c3_c1', 'c4_c1']
    inputs = make_features(CHANNELS, sizes)
    assert_same_bits(ours(inputs), parent(inputs))


def test_each_step_is_guided_by_the_level_it_reaches():
    parent, head = build(FPNHead).eval(), build(upsample_cfg=GATED).eval()
    assert len(load_parent(head, parent)) == 6 * 12
    for p in head.upsamplers.parameters():
        torch.nn.init.normal_(p, std=0.3)
    assert list(head.upsamplers) == STEPS
    c1, c2, c3, c4 = inputs = make_features(CHANNELS)
    up, convs = head.upsamplers, head.scale_heads
    from_c2 = up['c2_c1'](convs[1][0](c2), c1)
    from_c3 = up['c3_c2'](convs[2][0](c3), c2)
    from_c3 = up['c3_c1'](convs[2][2](from_c3), c1)
    from_c4 = up['c4_c3'](convs[3][0](c4), c3)
    from_c4 = up['c4_c2'](convs[3][2](from_c4), c2)
    from_c4 = up['c4_c1'](convs[3][4](from_c4), c1)
    expected = head.conv_seg(convs[0](c1) + from_c2 + from_c3 + from_c4)
    got = head(inputs)
    assert got.shape == (2, 5, *ODD_SIZES[0])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert (got - parent(inputs)).abs().max() > 0.01


def test_levels_in_another_order_of_the_inputs():
    # in_index picks; names and guides count what was picked.
    options = dict(in_channels=CHANNELS[1:3], in_index=[1, 2], feature_strides=[8, 16])
    head = build(upsample_cfg=GATED, **options).eval()
    inputs = make_features(CHANNELS)
    x = head.upsamplers['c2_c1'](head.scale_heads[1][0](inputs[2]), inputs[1])
    expected = head.conv_seg(head.scale_heads[0](inputs[1]) + x)
    torch.testing.assert_close(head(inputs), expected, rtol=1e-6, atol=1e-6)


def test_every_parameter_gets_a_gradient():
    head = build(upsample_cfg=GATED)
    assert_gradients(head.upsamplers, head(make_features(CHANNELS)))


def test_steps_can_differ():
    step_cfgs = dict(c4_c3=dict(kernel_size=3), c2_c1=dict(type='bilinear'))
    up = build(upsample_cfg=dict(type='SAPA'), step_cfgs=step_cfgs).upsamplers
    assert [getattr(up[step], 'kernel_size', None) for step in STEPS] == [None, 5, 5, 3, 5, 5]


def test_compiles_in_one_graph():
    options = dict(in_channels=CHANNELS[:2], in_index=[0, 1], feature_strides=[4, 8])
    head = build(upsample_cfg=dict(type='SAPA'), **options).eval()
    compiled = torch.compile(head, backend='eager', fullgraph=True)
    inputs = make_features(CHANNELS)
    torch.testing.assert_close(compiled(inputs), head(inputs), rtol=1e-5, atol=1e-5)


def test_found_by_name():
    with DefaultScope.overwrite_default_scope('mmseg'):
        head = MODELS.build(dict(OPTIONS, type='GuidedFPNHead', upsample_cfg=dict(type='SAPA')))
    assert type(head) is GuidedFPNHead


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(), TypeError, 'upsample_cfg: expected a dict with a type, got None'),
        (dict(upsample_cfg=dict(type='SAPPA')), ValueError, "upsample_cfg: .*got 'SAPPA'"),
        (
            dict(upsample_cfg=GATED, step_cfgs=dict(c1_c2={})),
            ValueError,
            "step_cfgs: expected steps of c2_c1, c3_c2, .*, got 'c1_c2'",
        ),
        (
            dict(upsample_cfg=GATED, feature_strides=[4, 16, 32, 64]),
            ValueError,
            r'feature_strides: expected a level of stride 8 .* 16, got \[4, 16, 32, 64\]',
        ),
    ],
)
def test_bad_config(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)
