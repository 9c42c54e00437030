"""The ResNet with its stem: keys, features and what is frozen."""

import pytest
import torch
from mmseg.models.backbones import ResNet
from torch import nn

from sapa_mm.depth import StemResNet

NARROW = dict(stem_channels=8, base_channels=8)


@pytest.mark.parametrize('deep_stem', [False, True])
@pytest.mark.parametrize(('depth', 'size'), [(18, (64, 64)), (50, (67, 93))])
def test_stages_equal_mmsegs_and_the_stem_comes_first(depth, size, deep_stem):
    torch.manual_seed(0)
    stock = ResNet(depth, deep_stem=deep_stem, **NARROW)
    ours = StemResNet(depth, deep_stem=deep_stem, **NARROW)
    assert list(ours.state_dict()) == list(stock.state_dict())
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, *size)
    expected = stock(x)
    stem, *stages = ours(x)
    assert len(stages) == 4
    for got, wanted in zip(stages, expected, strict=True):
        assert got.equal(wanted)
    half = tuple(-(-side // 2) for side in size)
    assert stem.shape == (2, 8, *half)
    fresh = ResNet(depth, deep_stem=deep_stem, **NARROW)
    fresh.load_state_dict(stock.state_dict())
    first = fresh.stem(x) if deep_stem else torch.relu(fresh.norm1(fresh.conv1(x)))
    assert stem.equal(first)
    # It is as it was behind the ReLU, though the stages add in place.
    assert stem.min() == 0


def test_chosen_stages():
    outs = StemResNet(18, out_indices=(1, 3), **NARROW)(torch.randn(1, 3, 64, 64))
    assert [tuple(out.shape[1:]) for out in outs] == [(8, 32, 32), (16, 8, 8), (64, 2, 2)]


@pytest.mark.parametrize('deep_stem', [False, True])
def test_what_is_frozen(deep_stem):
    model = StemResNet(
        50, deep_stem=deep_stem, freeze_first_conv=True, freeze_norm_affine=True, **NARROW
    )
    model.train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    norms = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and 'downsample' not in name
    }
    assert len(norms) == (3 if deep_stem else 1) + 3 * 16
    conv = 'stem.0.weight' if deep_stem else 'conv1.weight'
    assert frozen == {conv} | {f'{norm}.{key}' for norm in norms for key in ('weight', 'bias')}
    assert any(
        'downsample' in name and p.requires_grad and p.dim() == 1
        for name, p in model.named_parameters()
    )
    before = {name: model.get_submodule(name).running_mean.clone() for name in norms}
    outs = model(torch.randn(2, 3, 64, 64))
    sum(out.square().mean() for out in outs).backward()
    for name, mean in before.items():
        assert not model.get_submodule(name).running_mean.equal(mean), name
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name


def test_mmsegs_ways_of_freezing_remain():
    model = StemResNet(18, frozen_stages=1, norm_eval=True, **NARROW)
    model.train()
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert not model.norm1.training and not model.layer4[0].norm1.training


@pytest.mark.parametrize('name', ['freeze_first_conv', 'freeze_norm_affine'])
def test_bad_arguments(name):
    with pytest.raises(TypeError, match=f'{name}: expected True or False, got 1'):
        StemResNet(18, **{name: 1})
