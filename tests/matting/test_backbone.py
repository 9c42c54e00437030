"""The encoder of the matting network: halving, and torchvision's weights."""

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint, save_checkpoint
from mmseg.models.backbones import ResNet
from testing_matting import (
    BILINEAR,
    BLOCKS,
    CHANNELS,
    CONV,
    INDEX_NET,
    MAX_POOL,
    PAIRED,
    build_small,
    make_inputs,
    randomize_all,
)
from torch.nn import functional as F
from upsampler_oracles import count, refused

from sapa_mm.matting import GuidedMattingNet, MattingResNet


def test_parameters():
    assert count(MattingResNet()) == 12_672 + 221_952 + 1_116_416 + 4_461_056
    assert count(MattingResNet(strided=True)) == count(MattingResNet())
    assert count(MattingResNet(in_channels=3)) == count(MattingResNet()) - 64 * 49


@pytest.mark.parametrize('size', [(37, 51), (64, 48), (1, 1)], ids=str)
def test_halves_what_it_is_told(size):
    backbone = randomize_all(MattingResNet(CHANNELS, BLOCKS)).eval()
    seen = []

    def halve(level, guide):
        seen.append((level, guide))
        return F.max_pool2d(guide, 2, ceil_mode=True)

    x = make_inputs(2, *size)
    features = backbone(x, halve)
    sizes = [size]
    for _ in range(4):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    assert [level for level, _ in seen] == [0, 1, 2, 3]
    assert all(a is b for (_, a), b in zip(seen, features.guides, strict=True))
    for guide, channels, side in zip(features.guides, (8, 8, 12, 16), sizes, strict=False):
        assert guide.shape == (2, channels, *side)
    for skip, channels, side in zip(features.skips, (4, 8, 8, 12), sizes, strict=False):
        assert skip.shape == (2, channels, *side)
    assert features.skips[0] is x
    assert torch.equal(features.skips[1], features.guides[1])
    assert features.last.shape == (2, 16, *sizes[4])


def test_strided_sizes():
    backbone = randomize_all(MattingResNet(CHANNELS, BLOCKS, strided=True)).eval()
    features = backbone(make_inputs(2, 37, 51))
    assert [tuple(skip.shape[1:]) for skip in features.skips] == [
        (4, 37, 51),
        (8, 19, 26),
        (8, 10, 13),
        (12, 5, 7),
    ]
    assert features.last.shape == (2, 16, 3, 4)
    assert len(features.guides) == 0


def test_norm_eval():
    for norm_eval in (False, True):
        backbone = MattingResNet(CHANNELS, BLOCKS, strided=True, norm_eval=norm_eval).train()
        before = backbone.layer2[0].bn1.running_mean.clone()
        backbone(make_inputs(2, 32, 32))
        assert torch.equal(backbone.layer2[0].bn1.running_mean, before) == norm_eval


LEARNED = ('.weight', '.bias')


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file as torchvision's ResNet-34 comes in, and what is in it."""
    torch.manual_seed(0)
    # mmseg's has torchvision's keys, but for the classifier.
    state = randomize_all(ResNet(34)).state_dict()
    state['fc.weight'], state['fc.bias'] = torch.randn(1000, 512), torch.randn(1000)
    assert sum(value.numel() for key, value in state.items() if key.endswith(LEARNED)) == 21_797_672
    path = tmp_path_factory.mktemp('weights') / 'resnet34.pth'
    torch.save(state, path)
    return str(path), state


def check_loaded(backbone, published):
    state = backbone.state_dict()
    assert len(state) == 2 + 4 + 12 * (3 + 4 + 4) + 2 * 6
    for name, value in state.items():
        if name == 'conv1.weight':
            assert torch.equal(value[:, :3], published[name])
            assert value.shape[1] == 4
            assert value[:, 3].eq(0).all()
        else:
            assert torch.equal(value, published[name]), name
    assert {name.split('.')[0] for name in published} - {name.split('.')[0] for name in state} == {
        'layer4',
        'fc',
    }


@pytest.mark.parametrize('strided', [False, True])
def test_published_weights_load(published, strided):
    path, state = published
    init_cfg = dict(type='Pretrained', checkpoint=path)
    backbone = MattingResNet(strided=strided, init_cfg=init_cfg)
    backbone.init_weights()
    check_loaded(backbone, state)


@pytest.mark.parametrize(
    ('upsample_cfg', 'downsample_cfg'),
    [(BILINEAR, MAX_POOL), (BILINEAR, CONV), (INDEX_NET, PAIRED)],
)
def test_published_weights_load_in_the_network(published, upsample_cfg, downsample_cfg):
    """The network's own initialization does not write over them."""
    path, state = published
    backbone = dict(init_cfg=dict(type='Pretrained', checkpoint=path))
    net = GuidedMattingNet(upsample_cfg, downsample_cfg=downsample_cfg, backbone=backbone)
    net.init_weights()
    check_loaded(net.backbone, state)
    # The rest is initialized as without them.
    weight = net.blocks['c5_c4'][0].conv1.weight
    assert weight.std().item() == pytest.approx((4 / (9 * 384)) ** 0.5, rel=0.04)


def test_published_weights_are_the_published_features(published):
    """With the trimap's channel 0 the strided encoder is ResNet-34 with leaky ReLU."""
    path, state = published
    backbone = MattingResNet(strided=True, init_cfg=dict(type='Pretrained', checkpoint=path))
    backbone.init_weights()
    model = ResNet(34)
    assert model.load_state_dict(state, strict=False).missing_keys == []
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.ReLU):
            owner, _, child = name.rpartition('.')
            setattr(model.get_submodule(owner), child, torch.nn.LeakyReLU(0.01))
    # Of the third stage the first four of its six blocks are there.
    model.layer3 = torch.nn.Sequential(*list(model.layer3)[:4])
    backbone.eval()
    model.eval()
    x = make_inputs(1, 37, 51)
    with torch.no_grad():
        features = backbone(x)
        stem = model.relu(model.bn1(model.conv1(x[:, :3])))
        l1 = model.layer1(model.maxpool(stem))
        l2 = model.layer2(l1)
        expected = [stem, l1, l2, model.layer3(l2)]
    for got, wanted in zip([*features.skips[1:], features.last], expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_three_channels_load_as_they_are(published):
    path, state = published
    init_cfg = dict(type='Pretrained', checkpoint=path)
    backbone = MattingResNet(in_channels=3, init_cfg=init_cfg)
    backbone.init_weights()
    assert torch.equal(backbone.conv1.weight, state['conv1.weight'])


def test_own_checkpoint_keeps_the_fourth_channel(tmp_path):
    net = build_small(INDEX_NET, PAIRED)
    path = str(tmp_path / 'net.pth')
    save_checkpoint(dict(state_dict=net.state_dict()), path)
    other = build_small(INDEX_NET, PAIRED)
    assert not torch.equal(other.backbone.conv1.weight, net.backbone.conv1.weight)
    load_checkpoint(other, path, strict=True)
    assert other.state_dict().keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert net.backbone.conv1.weight[:, 3].any()
    x = make_inputs(1, 32, 48)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), net.eval()(x))


def test_own_backbone_loads_pretrained(tmp_path):
    backbone = randomize_all(MattingResNet(CHANNELS, BLOCKS))
    path = str(tmp_path / 'backbone.pth')
    torch.save(backbone.state_dict(), path)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    other = MattingResNet(CHANNELS, BLOCKS, init_cfg=init_cfg)
    other.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_whole_network_loads_pretrained(tmp_path):
    net = build_small()
    path = str(tmp_path / 'net.pth')
    save_checkpoint(dict(state_dict=net.state_dict()), path)
    other = build_small(init_cfg=dict(type='Pretrained', checkpoint=path))
    other.init_weights()
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_loading_leaves_the_given_weights_alone(published):
    _, state = published
    given = dict(state)
    MattingResNet().load_state_dict(given, strict=False)
    assert given.keys() == state.keys()
    assert given['conv1.weight'].shape == (64, 3, 7, 7)


def test_is_registered():
    backbone = MODELS.build(dict(type='MattingResNet', channels=CHANNELS, blocks=BLOCKS))
    assert type(backbone) is MattingResNet
    assert isinstance(backbone, BaseModule)
    assert [len(backbone.get_submodule(f'layer{i}')) for i in (1, 2, 3)] == [1, 2, 2]


@pytest.mark.parametrize('argument', ['channels', 'blocks'])
def test_bad_stages(argument):
    for wrong in ((1, 2), (1, 2, 2, 2), (0, 1, 2), (1, -2, 2)):
        with refused(argument, error=ValueError):
            MattingResNet(**{argument: wrong})
    for wrong in ((1.0, 2, 2), ('8', 8, 8)):
        with refused(argument, error=TypeError):
            MattingResNet(**{argument: wrong})


@pytest.mark.parametrize('argument', ['channels', 'blocks'])
def test_stages_that_are_no_sequence(argument):
    with refused(argument, 'sequence', '8', error=TypeError):
        MattingResNet(**{argument: 8})


def test_bad_options():
    for wrong, error in ((0, ValueError), (-4, ValueError), (4.0, TypeError), (True, TypeError)):
        with refused('in_channels', error=error):
            MattingResNet(in_channels=wrong)
    for argument in ('strided', 'norm_eval'):
        for wrong in (1, 'yes', None):
            with refused(argument, error=TypeError):
                MattingResNet(**{argument: wrong})


def test_nothing_to_halve_by():
    with refused('downsample', error=ValueError):
        MattingResNet(CHANNELS, BLOCKS)(make_inputs(1, 32, 32))
