"""HCFPN is mmseg's FPN whose steps are decoded by the backbone's assignments."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmseg.models.necks import FPN
from mmseg.registry import MODELS
from testing_clustering import SIZE, TINY, make_features, make_images, make_samples
from testing_hosts import assert_same_bits
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.segmentation import HCFPN, ClusteredFeatures, HCResNet

CHANNELS = [8, 16, 32, 64]
OPTIONS = [
    dict(num_outs=4),
    dict(num_outs=5),
    dict(num_outs=3, start_level=1),
    dict(num_outs=2, start_level=1, end_level=3),
    dict(num_outs=5, start_level=1, add_extra_convs='on_input'),
    dict(num_outs=6, add_extra_convs='on_lateral', relu_before_extra_convs=True),
    dict(num_outs=6, start_level=1, add_extra_convs='on_output', norm_cfg=dict(type='BN')),
]


def build(cls: type = HCFPN, **options: object) -> nn.Module:
    return cls(CHANNELS, 6, **{'num_outs': 4, **options})


def build_pair(**options: object) -> tuple[HCFPN, FPN]:
    """Ours and the stock neck with its weights."""
    stock, ours = build(FPN, **options), build(**options)
    assert list(ours.state_dict()) == list(stock.state_dict())
    ours.load_state_dict(stock.state_dict(), strict=True)
    return ours, stock


def run(neck: HCFPN, feats: ClusteredFeatures, others: dict | None = None) -> list[Tensor]:
    """The levels of the backbone, written out; ``others`` upsample what has no assignment."""
    end = neck.backbone_end_level
    used = range(neck.start_level, end)
    levels = {i: conv(feats[i]) for i, conv in zip(used, neck.lateral_convs, strict=True)}
    # The assignments are those of the last steps, whatever the neck uses.
    first = len(feats) - 1 - len(feats.assignments)
    for i in range(end - 1, neck.start_level, -1):
        x, lateral = levels[i], levels[i - 1]
        if i - 1 >= first:
            up = feats.assignments[i - 1 - first].decode(x)
        elif others:
            up = others[f'c{i + 1}_c{i}'](x, lateral)
        else:
            up = F.interpolate(x, lateral.shape[2:], mode='nearest')
        levels[i - 1] = lateral + up
    return [conv(levels[i]) for i, conv in zip(used, neck.fpn_convs)]  # noqa: B905  extra ones


def assert_close(got: tuple[Tensor, ...], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [SIZE, (64, 96)])
@pytest.mark.parametrize('options', OPTIONS)
def test_level_0_is_the_stock_neck_bit_for_bit(options, size):
    ours, stock = build_pair(**options)
    feats = make_features(0, size)
    got, expected = ours(feats), stock(tuple(feats))
    assert len(got) == options['num_outs']
    assert_same_bits(got, expected)


@pytest.mark.parametrize('size', [SIZE, (96, 64), (70, 91)])
@pytest.mark.parametrize('levels', [1, 2, 3, 4])
def test_steps_are_decoded_where_there_is_an_assignment(levels, size):
    ours, stock = build_pair()
    feats = make_features(levels, size)
    # That of level 4 is from stride 2, which no level has.
    used = ClusteredFeatures(feats, feats.assignments[-3:])
    got = ours(feats)
    assert_close(got, run(ours, used))
    nearest = stock(tuple(feats))
    # The top is not upsampled, and every step below changes its level and all finer ones.
    assert torch.equal(got[3], nearest[3])
    changed = [(a - b).abs().max() > 1e-3 for a, b in zip(got, nearest, strict=True)]
    assert changed == [True, True, True, False]


@pytest.mark.parametrize('levels', [1, 2, 3])
@pytest.mark.parametrize('options', OPTIONS)
def test_options_of_the_stock_neck(options, levels):
    ours, stock = build_pair(**options)
    ours.eval(), stock.eval()
    feats = make_features(levels)
    got = ours(feats)
    assert isinstance(got, tuple)
    assert len(got) == options['num_outs']
    expected = run(ours, feats)
    assert_close(got[: len(expected)], expected)
    # Levels above the backbone's are made of what is not upsampled.
    assert_same_bits(list(got[len(expected) :]), list(stock(tuple(feats))[len(expected) :]))


def test_start_level_uses_the_assignments_of_its_own_steps():
    ours, _ = build_pair(num_outs=3, start_level=1)
    feats = make_features(3)
    # The assignment to the level left out plays no part.
    fewer = ClusteredFeatures(feats, feats.assignments[1:])
    assert_same_bits(ours(feats), ours(fewer))
    assert_close(ours(feats), run(ours, fewer))


@pytest.mark.parametrize('levels', [0, 1, 2, 3])
@pytest.mark.parametrize(
    'options',
    [
        dict(upsample_cfg=dict(type='bilinear', align_corners=False)),
        dict(upsample_cfg=dict(type='SAPA', embed_dims=8)),
        dict(upsample_cfg=dict(type='SAPA'), step_cfgs=dict(c2_c1=dict(type='bilinear'))),
        dict(step_cfgs=dict(c3_c2=dict(type='bilinear'))),
    ],
)
def test_the_other_steps_are_upsampled_as_the_config_says(options, levels):
    neck = build(**options)
    feats = make_features(levels)
    got = neck(feats)
    assert_close(got, run(neck, feats, dict(neck.upsamplers.items())))
    if levels < 2:
        assert (got[0] - run(neck, feats)[0]).abs().max() > 1e-3


def test_bilinear_steps_are_bilinear():
    neck = build(upsample_cfg=dict(type='bilinear', align_corners=False))

    def up(x: Tensor, guide: Tensor) -> Tensor:
        return F.interpolate(x, guide.shape[2:], mode='bilinear', align_corners=False)

    feats = make_features(1)
    assert_close(neck(feats), run(neck, feats, dict(c3_c2=up, c2_c1=up)))


def test_gradients_reach_the_clusterings():
    backbone, neck = HCResNet(18, 3, **TINY), build()
    outs = neck(backbone(make_images()))
    sum(out.square().sum() for out in outs).backward()
    for name, p in (*backbone.named_parameters(), *neck.named_parameters()):
        assert p.grad.isfinite().all() and p.grad.any(), name


def test_autocast():
    backbone, neck = HCResNet(18, 2, **TINY), build()
    backbone.eval()
    images = make_images()
    expected = neck(backbone(images))
    with torch.autocast('cpu', torch.bfloat16):
        got = neck(backbone(images))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().max() < 0.1 * b.abs().max()


def segmentor(levels: int | None) -> nn.Module:
    """A tiny one; without levels of mmsegmentation's parts alone."""
    ours = levels is not None
    backbone = dict(type='HCResNet', levels=levels) if ours else dict(type='ResNetV1c')
    config = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=SIZE),
        backbone=dict(TINY, depth=18, **backbone),
        neck=dict(
            type='HCFPN' if ours else 'FPN', in_channels=CHANNELS, out_channels=8, num_outs=4
        ),
        decode_head=dict(
            type='FPNHead',
            in_channels=[8] * 4,
            in_index=[0, 1, 2, 3],
            feature_strides=[4, 8, 16, 32],
            channels=8,
            num_classes=5,
            dropout_ratio=0.0,
            norm_cfg=dict(type='BN'),
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(Config(config))


@pytest.mark.filterwarnings('ignore:When align_corners=True')
@pytest.mark.parametrize('levels', [0, 1, 3])
def test_a_segmentor_trains_and_predicts(levels):
    stock, ours = segmentor(None), segmentor(levels)
    result = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert len(result.missing_keys) == 2 * levels
    images, samples = make_images(), make_samples()
    losses, expected = ours.loss(images, samples), stock.loss(images, samples)
    assert list(losses) == list(expected)
    if levels == 0:
        assert_same_bits(list(losses.values()), list(expected.values()))
    else:
        assert losses['decode.loss_ce'] != expected['decode.loss_ce']
    before = copy.deepcopy(dict(ours.named_parameters()))
    optimizer = OptimWrapper(torch.optim.SGD(ours.parameters(), lr=0.1))
    images = [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in range(2)]
    logs = ours.train_step(dict(inputs=images, data_samples=samples), optimizer)
    assert logs['loss'].isfinite()
    for name, p in ours.named_parameters():
        assert p.isfinite().all() and not torch.equal(p, before[name]), name
    results = ours.eval().val_step(dict(inputs=images, data_samples=make_samples()))
    assert [tuple(x.seg_logits.data.shape) for x in results] == [(5, *SIZE)] * 2


@pytest.mark.parametrize('levels', [0, 1, 2, 3])
def test_steps_of_the_levels_have_no_upsamplers(levels):
    neck = build(upsample_cfg=dict(type='SAPA', embed_dims=8), levels=levels)
    assert list(neck.upsamplers) == ['c4_c3', 'c3_c2', 'c2_c1'][levels:]
    feats = make_features(levels)
    assert_close(neck(feats), run(neck, feats, dict(neck.upsamplers.items())))
    sum(out.square().sum() for out in neck(feats)).backward()
    # Several GPUs wait for them.
    assert all(p.grad is not None for p in neck.parameters())
    if levels:
        with pytest.raises(ValueError, match=rf'levels: .* {levels - 1}, or fewer'):
            neck(ClusteredFeatures(feats, feats.assignments[1:]))


def test_found_by_name():
    with DefaultScope.overwrite_default_scope('mmseg'):
        neck = MODELS.build(dict(type='HCFPN', in_channels=CHANNELS, out_channels=6, num_outs=4))
    assert type(neck) is HCFPN


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(upsample_cfg='nearest'), TypeError, "upsample_cfg: expected a dict.*'nearest'"),
        (dict(upsample_cfg=dict(type='SAPPA')), ValueError, "upsample_cfg: .*got 'SAPPA'"),
        # FPN's own form would leave the assignments aside.
        (dict(upsample_cfg=dict(mode='bilinear')), ValueError, 'upsample_cfg: '),
        (
            dict(step_cfgs=dict(c5_c4={})),
            ValueError,
            "step_cfgs: expected steps of c4_c3, c3_c2, c2_c1, got 'c5_c4'",
        ),
        (dict(levels=5), ValueError, 'levels: expected an int from 0 to 4, got 5'),
        (dict(levels=2.0), TypeError, 'levels: expected an int from 0 to 4, got 2.0'),
        (dict(step_cfgs=[1]), TypeError, r'step_cfgs: expected a dict.*\[1\]'),
        (dict(step_cfgs=dict(c4_c3=3)), TypeError, r"step_cfgs\['c4_c3'\]: expected a dict"),
    ],
)
def test_bad_config(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


def test_bad_features():
    neck, feats = build(), make_features(2)
    for plain in (tuple(feats), list(feats)):
        with pytest.raises(TypeError, match='inputs'):
            neck(plain)
    with pytest.raises(ValueError, match='inputs: expected 4 features, got 3'):
        neck(ClusteredFeatures(feats[1:], feats.assignments))
