"""EfficientNet-Lite0 against a plain rewriting that reads the published names."""

import sys

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_state_dict
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.segmentation import EfficientNetLite0

# Every block: kernel size, stride, channels before, between and after.
BLOCKS = [
    (3, 1, 32, 32, 16),
    (3, 2, 16, 96, 24),
    (3, 1, 24, 144, 24),
    (5, 2, 24, 144, 40),
    (5, 1, 40, 240, 40),
    (3, 2, 40, 240, 80),
    (3, 1, 80, 480, 80),
    (3, 1, 80, 480, 80),
    (5, 1, 80, 480, 112),
    (5, 1, 112, 672, 112),
    (5, 1, 112, 672, 112),
    (5, 2, 112, 672, 192),
    (5, 1, 192, 1152, 192),
    (5, 1, 192, 1152, 192),
    (5, 1, 192, 1152, 192),
    (3, 1, 192, 1152, 320),
]
FEATURES = (2, 4, 10, 15)


def published_weights() -> dict[str, Tensor]:
    """Draw weights under the names that the published file has, its classifier's too."""
    weights: dict[str, Tensor] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        scale = (2 / (into * kernel**2)) ** 0.5
        weights[f'{name}.weight'] = torch.randn(out, into, kernel, kernel).double() * scale

    def norm(name: str, width: int) -> None:
        for key, value in {
            'weight': torch.rand(width).double() + 0.5,
            'bias': torch.randn(width).double() * 0.2,
            'running_mean': torch.randn(width).double() * 0.2,
            'running_var': torch.rand(width).double() + 0.5,
            'num_batches_tracked': torch.tensor(7),
        }.items():
            weights[f'{name}.{key}'] = value

    conv('_conv_stem', 32, 3, 3)
    norm('_bn0', 32)
    for i, (kernel, _, before, between, after) in enumerate(BLOCKS):
        if between > before:
            conv(f'_blocks.{i}._expand_conv', between, before, 1)
            norm(f'_blocks.{i}._bn0', between)
        conv(f'_blocks.{i}._depthwise_conv', between, 1, kernel)
        norm(f'_blocks.{i}._bn1', between)
        conv(f'_blocks.{i}._project_conv', after, between, 1)
        norm(f'_blocks.{i}._bn2', after)
    conv('_conv_head', 1280, 320, 1)
    norm('_bn1', 1280)
    weights['_fc.weight'] = torch.randn(1000, 1280)
    weights['_fc.bias'] = torch.randn(1000)
    return weights


def reference(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Compute the four features with functions alone."""

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f'{name}.weight']
        kernel = weight.shape[-1]
        # So many zeros that ceil(size / stride) windows fit, the odd one at the far end.
        padding: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            need = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [need // 2, need - need // 2]
        return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        scale, shift, mean, var = (
            weights[f'{name}.{key}'][:, None, None]
            for key in ('weight', 'bias', 'running_mean', 'running_var')
        )
        return (x - mean) / torch.sqrt(var + 1e-3) * scale + shift

    x = norm('_bn0', conv('_conv_stem', x, stride=2)).clamp(0, 6)
    outs = []
    for i, (_, stride, before, between, after) in enumerate(BLOCKS):
        name, y = f'_blocks.{i}', x
        if between > before:
            y = norm(f'{name}._bn0', conv(f'{name}._expand_conv', y)).clamp(0, 6)
        y = conv(f'{name}._depthwise_conv', y, stride, groups=between)
        y = norm(f'{name}._bn1', y).clamp(0, 6)
        y = norm(f'{name}._bn2', conv(f'{name}._project_conv', y))
        x = x + y if stride == 1 and before == after else y
        if i in FEATURES:
            outs.append(x)
    return outs


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize('size', [(64, 96), (45, 67), (33, 1)])
def test_published_weights_give_the_features_of_a_rewriting(size):
    weights = published_weights()
    model = MODELS.build(dict(type='mmseg.EfficientNetLite0')).double().eval()
    # As mmengine loads `init_cfg` of a part of a model, whose other keys stay.
    whole = nn.ModuleDict({'backbone': model, 'other': nn.Conv2d(1, 1, 1)})
    other = {'other.weight': torch.ones(1, 1, 1, 1), 'other.bias': torch.ones(1)}
    load_state_dict(whole, {f'backbone.{k}': v for k, v in weights.items()} | other, strict=True)
    assert whole['other'].bias.item() == 1
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    outs = model(x)
    assert [tuple(out.shape[1:]) for out in outs] == [
        (channels, *(-(-n // stride) for n in size))
        for channels, stride in zip((24, 40, 112, 320), (4, 8, 16, 32), strict=True)
    ]
    for out, expected in zip(outs, reference(weights, x), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    assert norms(model)[0].num_batches_tracked.item() == 7


def test_features_of_odd_sizes_lie_a_pixel_earlier():
    model = EfficientNetLite0().eval()
    image = torch.randn(1, 3, 31, 45, generator=torch.manual_seed(0))
    with torch.no_grad():
        odd, begun, ended = (
            model.stem(F.pad(image, pad)) for pad in ((0,) * 4, (1, 0) * 2, (0, 1) * 2)
        )
    # A line of zeros before the image changes nothing but the size, one after it does.
    torch.testing.assert_close(odd, begun)
    assert odd.shape == ended.shape and (odd - ended).abs().mean() > 0.1 * odd.abs().mean()


def test_own_weights_load_and_the_parameters_are_counted():
    first, second = (EfficientNetLite0() for _ in range(2))
    first.init_weights()
    load_state_dict(second, first.state_dict(), strict=True)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)
    assert sum(p.numel() for p in first.parameters()) == 2_958_848
    assert EfficientNetLite0.channels == (24, 40, 112, 320)


@pytest.mark.parametrize(
    ('stages', 'blocks', 'stem'), [(-1, 0, False), (0, 0, True), (2, 3, True), (7, 16, True)]
)
def test_what_is_frozen_neither_trains_nor_moves(stages, blocks, stem):
    model = EfficientNetLite0(frozen_stages=stages)
    model.init_weights()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = model.train()(torch.randn(2, 3, 64, 64))[-1].square().mean()
    if stages < 7:
        out.backward()
    trains = {name for name, p in model.named_parameters() if p.grad is not None}
    frozen = [f'blocks.{i}.' for i in range(blocks)] + ['stem.'] * stem
    expected = {n for n, _ in model.named_parameters() if not n.startswith(tuple(frozen) or '-')}
    assert trains == expected
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert {n for n in moved if n.endswith('running_mean')} == {
        n for n in before if n.endswith('running_mean') and not n.startswith(tuple(frozen) or '-')
    }


def test_norm_eval_keeps_all_statistics():
    model = EfficientNetLite0(norm_eval=True).train()
    assert model.training
    assert not any(norm.training for norm in norms(model))
    assert all(norm.training for norm in norms(EfficientNetLite0().train()))


def test_a_checkpoint_comes_from_a_package(tmp_path, monkeypatch):
    (tmp_path / 'weights_of_this_test').mkdir()
    (tmp_path / 'weights_of_this_test' / '__init__.py').touch()
    torch.save({'a': torch.ones(2)}, tmp_path / 'weights_of_this_test' / 'w.pth')
    monkeypatch.syspath_prepend(tmp_path)
    found = CheckpointLoader.load_checkpoint('package://weights_of_this_test/w.pth', 'cpu')
    assert found['a'].tolist() == [1, 1]
    # It need not be imported for that.
    assert 'weights_of_this_test' not in sys.modules
    with pytest.raises(FileNotFoundError, match=r'has no file x\.pth'):
        CheckpointLoader.load_checkpoint('package://weights_of_this_test/x.pth')
    with pytest.raises(FileNotFoundError, match='pip install not-installed'):
        CheckpointLoader.load_checkpoint('package://not_installed/w.pth')


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (dict(frozen_stages=8), ValueError, 'frozen_stages: expected an int from -1 to 7, got 8'),
        (dict(frozen_stages=1.0), TypeError, 'frozen_stages'),
        (dict(norm_eval=1), TypeError, 'norm_eval'),
    ],
)
def test_bad_options_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        EfficientNetLite0(**kwargs)
