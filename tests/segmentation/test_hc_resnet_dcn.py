"""HCResNet with deformable convolutions in place of the strided ones."""

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from testing_clustering import (
    TINY,
    VARIANTS,
    build_pair,
    check_assignments,
    make_images,
    run_stock,
)
from torch import nn
from torch.nn import functional as F

from sapa_mm.segmentation import HCResNet


def deformable(net: nn.Module) -> dict[str, ModulatedDeformConv2dPack]:
    modules = net.named_modules()
    return {name: m for name, m in modules if isinstance(m, ModulatedDeformConv2dPack)}


def expected_deformable(depth: int, variant: str, levels: int) -> set[str]:
    """Names: in the first stage the pooling halves."""
    stages = [i for i in range(5 - levels, 5) if i > 1]
    names = {f'layer{i}.0.conv{1 if depth == 18 else 2}' for i in stages}
    return names | ({f'layer{i}.0.downsample.0' for i in stages} if variant != 'V1d' else set())


@pytest.mark.parametrize('levels', [0, 1, 2, 3, 4])
@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('variant', list(VARIANTS))
def test_deformable_convolutions_are_those_that_halve(variant, depth, levels):
    ours, stock = build_pair(depth, variant, levels=levels, downsampling='dcn')
    convs = deformable(ours)
    assert convs.keys() == expected_deformable(depth, variant, levels)
    for name, conv in convs.items():
        plain = stock.get_submodule(name)
        assert plain.stride == (2, 2)
        for option in ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'bias'):
            assert getattr(conv, option) == getattr(plain, option), (name, option)
        assert torch.equal(conv.weight, plain.weight)
    missing = ours.load_state_dict(stock.state_dict(), strict=False).missing_keys
    offsets = {f'{name}.conv_offset.{kind}' for name in convs for kind in ('weight', 'bias')}
    assert {name for name in missing if not name.startswith('clusterings.')} == offsets


def test_under_autocast():
    ours = HCResNet(18, 2, downsampling='dcn', **TINY)
    ours.eval()
    for conv in deformable(ours).values():
        nn.init.normal_(conv.conv_offset.weight, std=0.05)
    images = make_images()
    expected = ours(images)
    with torch.autocast('cpu', torch.bfloat16):
        got = ours(images)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().max() < 0.1 * b.abs().max()


def test_the_shortcut_of_v1d_still_pools():
    ours, _ = build_pair(50, 'V1d', levels=4, downsampling='dcn')
    for stage in (ours.layer2, ours.layer3, ours.layer4):
        pool, conv, _ = stage[0].downsample
        assert (type(pool), type(conv)) == (nn.AvgPool2d, nn.Conv2d)
        assert (pool.stride, conv.stride) == (2, (1, 1))


@pytest.mark.parametrize('initialized', [False, True])
@pytest.mark.parametrize('depth', [18, 50])
def test_deformable_convolutions_start_as_half_the_plain_ones(depth, initialized):
    ours = HCResNet(depth, 4, downsampling='dcn', **TINY)
    if initialized:  # it is Kaiming's for every convolution
        ours.init_weights()
    convs = deformable(ours.double())
    assert len(convs) == 6
    for name, conv in convs.items():
        assert all((p == 0).all() for p in conv.conv_offset.parameters()), name
        assert conv.weight.std() > 0
        x = torch.randn(2, conv.in_channels, 9, 13, dtype=torch.float64)
        expected = 0.5 * F.conv2d(x, conv.weight, stride=2, padding=conv.padding)
        torch.testing.assert_close(conv(x), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ('depth', 'variant'), [(18, 'V1c'), (18, 'plain'), (50, 'V1c'), (50, 'V1d')]
)
def test_the_deformable_net_starts_as_the_plain_one_with_half_the_weights(depth, variant):
    ours, stock = build_pair(depth, variant, levels=3, downsampling='dcn')
    for name in deformable(ours):
        stock.get_submodule(name).weight.data.mul_(0.5)
    ours.double().eval(), stock.double().eval()
    images = make_images(dtype=torch.float64)
    stages = run_stock(stock, images)
    feats = ours(images)
    for got, expected in zip(feats, stock(images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    check_assignments(ours, stages, feats.assignments, 'block')
