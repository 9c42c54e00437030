"""Heads that decode by the assignments of the features, alone and in segmentors."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmseg.models import decode_heads
from mmseg.models.backbones import ResNetV1c
from mmseg.models.necks import FPN
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from testing_clustering import COMMON, GRIDS, HEADS, SIZE, TINY, make_features, make_samples
from testing_hosts import assert_same_bits
from torch import Tensor, nn

import sapa_mm.segmentation
from sapa_mm.segmentation import HCFPN, ClusterDecoding, HCHead, HCPSPHead

#: These are the grids of strides 4 to 32.
GRIDS = GRIDS[1:]
CHANNELS = [8, 16, 32, 64]


@MODELS.register_module()
class HCFPNHead(ClusterDecoding, decode_heads.FPNHead):
    """A head whose logits are on the finest grid."""


@MODELS.register_module()
class HCDAHead(ClusterDecoding, decode_heads.DAHead):
    """A head that gives more than logits."""


def build_heads(name: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """Ours and the stock head with its weights."""
    cfg = {**COMMON, **HEADS[name]}
    stock = getattr(decode_heads, name)(**cfg)
    nn.init.normal_(stock.conv_seg.weight, std=10.0)  # so that logits differ
    ours = HCHead(head_type=name, **cfg, **options)
    assert list(ours.state_dict()) == list(stock.state_dict())
    ours.load_state_dict(stock.state_dict(), strict=True)
    return ours, stock


def seeded(function: object, *args: object) -> object:
    """Call it with the same dropout as every other."""
    torch.manual_seed(3)
    return function(*args)


# Heads


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', list(HEADS))
def test_level_0_is_the_stock_head_bit_for_bit(name, training):
    ours, stock = build_heads(name)
    assert isinstance(ours, type(stock))
    ours.train(training), stock.train(training)
    feats, samples = make_features(levels=0), make_samples()
    assert_same_bits(seeded(ours, feats), seeded(stock, feats))
    losses, expected = seeded(ours.loss, feats, samples, {}), seeded(stock.loss, feats, samples, {})
    assert list(losses) == list(expected)
    assert_same_bits(list(losses.values()), list(expected.values()))
    metas = [sample.metainfo for sample in samples]
    got, expected = seeded(ours.predict, feats, metas, {}), seeded(stock.predict, feats, metas, {})
    assert got.shape == (2, 5, *SIZE)
    assert torch.equal(got, expected)
    assert_same_bits(list(ours.state_dict().values()), list(stock.state_dict().values()))


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    ('name', 'levels'),
    # UPerHead's logits lie on the points of the only level, and are no clusters' values.
    [(name, levels) for name in HEADS for levels in (1, 2, 3) if (name, levels) != ('UPerHead', 1)],
)
def test_logits_losses_and_predictions_are_the_decoded_ones(name, levels, training):
    ours, stock = build_heads(name)
    ours.train(training), stock.train(training)
    feats, samples = make_features(levels), make_samples()
    logits = seeded(stock, feats)
    decoded = logits
    # The logits go up coarse to fine, from their own grid.
    for assignment in reversed(feats.assignments):
        if assignment.size == tuple(decoded.shape[2:]):
            decoded = assignment.decode(decoded)
    assert decoded.shape == (2, 5, *GRIDS[3 - levels])
    assert_same_bits(seeded(ours, feats), decoded)
    losses = seeded(ours.loss, feats, samples, {})
    expected = stock.loss_by_feat(decoded, samples)
    assert list(losses) == list(expected)
    assert_same_bits(list(losses.values()), list(expected.values()))
    assert abs(losses['loss_ce'] - seeded(stock.loss, feats, samples, {})['loss_ce']) > 1e-3
    metas = [sample.metainfo for sample in samples]
    got = seeded(ours.predict, feats, metas, {})
    assert torch.equal(got, stock.predict_by_feat(decoded, metas))


def test_hard_is_for_evaluation_alone():
    ours, stock = build_heads('FCNHead', hard=True)
    feats = make_features(levels=2)
    logits = stock.eval()(feats)
    soft, hard = feats.decode(logits), feats.decode(logits, hard=True)
    assert (soft - hard).abs().max() > 1e-3
    assert torch.equal(ours.eval()(feats), hard)
    metas = [sample.metainfo for sample in make_samples()]
    assert torch.equal(ours.predict(feats, metas, {}), stock.predict_by_feat(hard, metas))
    ours.train(), stock.train()
    assert torch.equal(seeded(ours, feats), feats.decode(seeded(stock, feats)))
    # By default it never is.
    ours, stock = build_heads('FCNHead')
    logits = stock.eval()(feats)
    assert torch.equal(ours.eval()(feats), feats.decode(logits))


def test_a_head_has_one_class():
    first, second = build_heads('PSPHead')[0], build_heads('PSPHead')[0]
    assert type(first) is type(second)
    assert isinstance(first, ClusterDecoding)
    assert isinstance(first, decode_heads.PSPHead)
    assert type(first) is not type(build_heads('FCNHead')[0])
    twin = copy.deepcopy(first).eval()
    feats = make_features(levels=2)
    assert torch.equal(twin(feats), first.eval()(feats))


@pytest.mark.parametrize('name', list(HEADS))
def test_each_head_is_a_class_under_its_own_name(name):
    head = build_heads(name)[0]
    assert type(head) is MODELS.get(f'HC{name}') is getattr(sapa_mm.segmentation, f'HC{name}')
    with DefaultScope.overwrite_default_scope('mmseg'):
        built = MODELS.build(dict(type=f'HC{name}', hard=True, **COMMON, **HEADS[name]))
    assert type(built) is type(head)
    assert (built.hard, head.hard) == (True, False)
    assert list(built.state_dict()) == list(head.state_dict())


def test_a_head_may_be_named_with_its_scope():
    head = HCHead(head_type='mmseg.PSPHead', **COMMON, **HEADS['PSPHead'])
    assert type(head) is HCPSPHead


def test_a_head_of_the_users_own():
    cfg, name = dict(COMMON, in_channels=64, in_index=3), 'DNLHead'
    with pytest.raises(ValueError) as error:
        HCHead(head_type=name, **cfg)
    text = str(error.value)
    offered = text.splitlines()[0]
    for there in (*HEADS, 'FPNHead', 'DAHead'):
        assert f'{there}, ' in offered
    assert 'FPN, ' not in offered.replace('FPNHead, ', '')
    assert text.endswith("got 'DNLHead'")
    # The error's own lines are all that it takes.
    code = '\n'.join(line.strip() for line in text.splitlines()[1:3])
    scope = dict(MODELS=MODELS, ClusterDecoding=ClusterDecoding, DNLHead=decode_heads.DNLHead)
    try:
        exec(code, {'__name__': __name__} | scope)
        head = HCHead(head_type=name, hard=True, **cfg)
        assert isinstance(head, ClusterDecoding) and isinstance(head, decode_heads.DNLHead)
        assert head.hard
        assert head(make_features(levels=2)).shape == (2, 5, *GRIDS[1])
    finally:
        MODELS.module_dict.pop('HCDNLHead', None)


def test_deeplabv3plus_decodes_from_the_finest_feature():
    options = dict(HEADS['DepthwiseSeparableASPPHead'], c1_in_channels=8, c1_channels=4)
    cfg = COMMON | options
    stock = decode_heads.DepthwiseSeparableASPPHead(**cfg).eval()
    ours = HCHead(head_type='DepthwiseSeparableASPPHead', **cfg).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    feats = make_features(levels=4)
    (finest, *_) = feats.assignments
    logits = stock(feats)
    assert tuple(logits.shape[2:]) == finest.size == GRIDS[0]
    assert torch.equal(ours(feats), finest.decode(logits))
    with pytest.raises(ValueError, match=r'got DepthwiseSeparableASPPHead, \('):
        ours(make_features(levels=3))


def test_a_head_can_be_saved_whole(tmp_path):
    head = build_heads('PSPHead')[0].eval()
    torch.save(head, tmp_path / 'head.pth')
    loaded = torch.load(tmp_path / 'head.pth', weights_only=False)
    assert type(loaded) is type(head)
    feats = make_features(levels=2)
    assert torch.equal(loaded(feats), head(feats))


def test_heads_that_fuse_finer_features_are_refused():
    cfg = COMMON | dict(in_channels=CHANNELS, in_index=[0, 1, 2, 3])
    head = HCHead(head_type='FPNHead', feature_strides=[4, 8, 16, 32], **cfg)
    with pytest.raises(ValueError, match=r'head_type: .*grid of clusters.*got FPNHead, \('):
        head(make_features(levels=2))


def test_heads_that_give_more_than_logits_are_refused():
    cfg = {k: v for k, v in HEADS['FCNHead'].items() if k != 'num_convs'}
    head = HCHead(head_type='DAHead', pam_channels=4, **COMMON, **cfg)
    with pytest.raises(TypeError, match=r'head_type: .*got DAHead, tuple'):
        head(make_features(levels=2))


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(head_type=3), TypeError, 'head_type.*3'),
        (dict(head_type='FCNHaed'), ValueError, "head_type.*'FCNHaed'"),
        (dict(head_type='FPN'), TypeError, "head_type.*'FPN'"),
        (dict(head_type='ResNet'), TypeError, "head_type.*'ResNet'"),
        (dict(head_type='FCNHead', hard=1), TypeError, 'hard.*1'),
        (dict(head_type='FCNHead', hard='yes'), TypeError, "hard.*'yes'"),
        (dict(head_type='FCNHead', hard=None), TypeError, 'hard.*None'),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        HCHead(**COMMON, **HEADS['FCNHead'], **options)


def test_features_without_assignments_are_refused():
    head, _ = build_heads('FCNHead')
    feats = make_features(levels=2)
    for plain in (tuple(feats), list(feats), FPN(CHANNELS, 64, 4)(feats)):
        with pytest.raises(TypeError, match='inputs'):
            head(plain)


def test_behind_a_neck_there_is_nothing_to_decode_by():
    feats = HCFPN(CHANNELS, 64, 4)(make_features(levels=2))
    with pytest.raises(TypeError, match='inputs'):
        build_heads('FCNHead')[0](feats)


# Segmentors


def segmentor_config(levels: int | None, name: str = 'FCNHead') -> dict:
    """A tiny segmentor; without levels of mmsegmentation's parts alone."""
    head = dict(COMMON, **HEADS[name], dropout_ratio=0.0)
    if levels is None:
        backbone, head = dict(TINY, depth=18, type='ResNetV1c'), dict(head, type=name)
    else:
        backbone = dict(TINY, depth=18, type='HCResNet', levels=levels)
        head = dict(head, type='HCHead', head_type=name)
    auxiliary = dict(
        COMMON, type='FCNHead', in_channels=32, in_index=2, num_convs=1, dropout_ratio=0.0
    )
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=SIZE),
        backbone=backbone,
        decode_head=head,
        auxiliary_head=auxiliary,
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def build_segmentors(levels: int) -> tuple[EncoderDecoder, EncoderDecoder]:
    """Ours and the stock one with its weights."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        ours, stock = (MODELS.build(Config(segmentor_config(x))) for x in (levels, None))
    nn.init.normal_(stock.decode_head.conv_seg.weight)
    result = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith('backbone.clusterings.') for name in result.missing_keys)
    assert len(result.missing_keys) == 2 * levels
    return ours, stock


def test_the_segmentor_of_level_0_is_the_stock_one():
    ours, stock = build_segmentors(0)
    assert isinstance(stock.backbone, ResNetV1c)
    images, samples = torch.randn(2, 3, *SIZE), make_samples()
    losses, expected = ours.loss(images, samples), stock.loss(images, samples)
    assert list(losses) == list(expected)
    assert_same_bits(list(losses.values()), list(expected.values()))


def test_the_auxiliary_head_is_not_affected():
    ours, stock = build_segmentors(2)
    images, samples = torch.randn(2, 3, *SIZE), make_samples()
    losses, expected = ours.loss(images, samples), stock.loss(images, samples)
    assert list(losses) == list(expected)
    for name in ('aux.loss_ce', 'aux.acc_seg'):
        assert torch.equal(losses[name], expected[name])
    assert abs(losses['decode.loss_ce'] - expected['decode.loss_ce']) > 1e-3


@pytest.mark.parametrize('levels', [1, 2, 4])
def test_a_training_step_reaches_the_clusterings(levels):
    ours, _ = build_segmentors(levels)
    before = copy.deepcopy(dict(ours.named_parameters()))
    optimizer = OptimWrapper(torch.optim.SGD(ours.parameters(), lr=0.1))
    images = [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in range(2)]
    logs = ours.train_step(dict(inputs=images, data_samples=make_samples()), optimizer)
    assert logs['loss'].isfinite()
    clusterings = dict(ours.backbone.clusterings.named_parameters(prefix='backbone.clusterings'))
    assert len(clusterings) == 2 * levels
    for name, p in ours.named_parameters():
        assert not torch.equal(p, before[name]), name
        assert p.isfinite().all(), name


def predict(model: EncoderDecoder, images: list[Tensor]) -> list[SegDataSample]:
    size = tuple(images[0].shape[1:])
    metainfo = dict(img_shape=size, ori_shape=size)
    samples = [SegDataSample(metainfo=metainfo) for _ in images]
    return model.eval().val_step(dict(inputs=images, data_samples=samples))


@pytest.mark.parametrize('levels', [0, 2, 4])
@pytest.mark.parametrize('size', [(64, 64), (65, 97), (97, 66)])
def test_whole_prediction_has_the_size_of_the_image(size, levels):
    ours, _ = build_segmentors(levels)
    images = [torch.rand(3, *size) * 255 for _ in range(2)]
    results = predict(ours, images)
    assert len(results) == 2
    feats = ours.backbone(torch.stack(images))
    logits = super(ClusterDecoding, ours.decode_head).forward(feats)
    expected = nn.functional.interpolate(feats.decode(logits), size, mode='bilinear')
    for result, want in zip(results, expected, strict=True):
        assert result.seg_logits.data.shape == (5, *size)
        assert result.pred_sem_seg.data.shape == (1, *size)
        torch.testing.assert_close(result.seg_logits.data, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('levels', [2, 4])
def test_slide_prediction_has_the_size_of_the_image(levels):
    ours, _ = build_segmentors(levels)
    image = torch.rand(3, 97, 65) * 255
    crop = predict(ours, [image[:, :65]])[0].seg_logits.data
    ours.test_cfg = Config(dict(mode='slide', crop_size=(65, 65), stride=(32, 32)))
    (result,) = predict(ours, [image])
    assert result.seg_logits.data.shape == (5, 97, 65)
    assert result.pred_sem_seg.data.shape == (1, 97, 65)
    # The first rows lie in the first crop alone.
    torch.testing.assert_close(result.seg_logits.data[:, :32], crop[:, :32], rtol=1e-4, atol=1e-4)


def test_autocast():
    ours, _ = build_segmentors(2)
    images, samples = torch.randn(2, 3, *SIZE), make_samples()
    expected = ours.eval().loss(images, samples)['decode.loss_ce']
    with torch.autocast('cpu', torch.bfloat16):
        losses = ours.loss(images, samples)
    assert losses['decode.loss_ce'].item() == pytest.approx(expected.item(), rel=0.05)
    losses['decode.loss_ce'].backward()
    for name, p in ours.backbone.clusterings.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize('head_type', ['FCNHead', 'PSPHead', 'ASPPHead'])
def test_merged_over_a_stock_config(tmp_path, head_type):
    base = dict(FCNHead='fcn', PSPHead='pspnet', ASPPHead='deeplabv3')[head_type]
    lines = [
        f"_base_ = 'mmseg::_base_/models/{base}_r50-d8.py'",
        "norm_cfg = dict(type='BN')",
        'model = dict(',
        '    pretrained=None,',
        "    backbone=dict(type='HCResNet', depth=18, levels=2, stem_channels=8, base_channels=8,",
        '        strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), norm_cfg=norm_cfg),',
        f"    decode_head=dict(type='HCHead', head_type='{head_type}', in_channels=64,",
        '        channels=8, norm_cfg=norm_cfg, hard=True),',
        '    auxiliary_head=dict(in_channels=32, channels=8, norm_cfg=norm_cfg))',
    ]
    path = tmp_path / 'config.py'
    path.write_text('\n'.join(lines))
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config.model)
    head = model.decode_head
    assert isinstance(head, ClusterDecoding)
    assert type(model.auxiliary_head) is decode_heads.FCNHead
    stock = getattr(decode_heads, head_type)
    assert isinstance(head, stock)
    # The stock config says this, and ours does not.
    expected = dict(
        FCNHead=('num_convs', 2),
        PSPHead=('pool_scales', (1, 2, 3, 6)),
        ASPPHead=('dilations', (1, 12, 24, 36)),
    )[head_type]
    assert getattr(head, expected[0]) == expected[1]
    assert head.num_classes == 19
    with torch.no_grad():
        out = model.eval()(torch.randn(1, 3, *SIZE), mode='tensor')
    assert out.shape == (1, 19, *GRIDS[1])
