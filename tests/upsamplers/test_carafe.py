import math

import pytest
import torch
from mmcv.ops.carafe import CARAFEPack
from mmengine.registry import MODELS
from testing_utils import LAYOUTS, SIZES, assert_close_to_reference, border_margin, make_tensor
from torch import nn
from torch.nn import functional as F
from upsampler_oracles import (
    MODULE_DTYPES,
    check_against_oracle,
    check_autocast,
    check_batch_of_one,
    check_gradients_numerically,
    check_host_initialises,
    check_layouts,
    check_refuses_features,
    randomize,
    refused,
    shuffle,
)

from sapa_mm.upsamplers import CARAFE, build_upsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')


def mmcv_formula(x, logits, scale, kernel_size, groups):
    """What mmcv's CUDA kernel computes, by F.unfold.

    Args:
        x: (N, C, H, W).
        logits: Of the softmax (N, groups * K * K * scale**2, H, W), as the encoder gives them.
        scale: Upsampling ratio.
        kernel_size: K.
        groups: Channel c has the weights of group c // (C // groups).
    """
    n, channels, h, w = x.shape
    places = kernel_size**2
    weights = shuffle(logits, scale).unflatten(1, (groups, places)).softmax(dim=2)
    windows = F.unfold(x, kernel_size, padding=kernel_size // 2).view(n, channels, places, h, w)
    windows = windows.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
    of_channel = [c // (channels // groups) for c in range(channels)]
    return (weights[:, of_channel] * windows).sum(dim=2)


def oracle_of(module, encoder_dilation=1):
    """The definition of a module: ``oracle(state, x, guide)``."""
    scale, kernel_size, groups = module.scale_factor, module.kernel_size, module.groups

    def oracle(state, x, guide):
        compressed = F.conv2d(
            x, state['channel_compressor.weight'], state['channel_compressor.bias']
        )
        weight = state['content_encoder.weight']
        logits = F.conv2d(
            compressed,
            weight,
            state['content_encoder.bias'],
            padding=(weight.shape[2] - 1) * encoder_dilation // 2,
            dilation=encoder_dilation,
        )
        out = mmcv_formula(x, logits, scale, kernel_size, groups)
        (h, w), size = out.shape[2:], guide.shape[2:]
        if 0 <= h - size[0] < scale and 0 <= w - size[1] < scale:
            return out[:, :, : size[0], : size[1]]
        return F.interpolate(out, tuple(size), mode='bilinear', align_corners=False)

    return oracle


def make_inputs(sizes, channels=None, dtype=torch.float64):
    channels = sizes.c if channels is None else channels
    return {
        'x': make_tensor(sizes.n, channels, *sizes.low, mean=0.5, dtype=dtype),
        'guide': make_tensor(sizes.n, sizes.d, *sizes.high, dtype=dtype),
    }


def check(module, inputs, **options):
    low, high = (t.shape[2:] for t in inputs.values())
    margins = {
        'output': border_margin(high, low, module.kernel_size),
        'x': (module.kernel_size // 2,) * 2,
    }
    check_against_oracle(module, module, oracle_of(module, **options), inputs, margins=margins)


@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_is_the_definition(sizes, dtype):
    # The fixed ratio of 2 gives doubled, cropped and interpolated sizes.
    module = randomize(CARAFE(sizes.c, sizes.d, compressed_channels=6)).to(dtype)
    check(module, make_inputs(sizes, dtype=dtype))


@pytest.mark.parametrize('scale', [1, 2, 3, 4])
@pytest.mark.parametrize('low', [(5, 4), (3, 7)])
@pytest.mark.parametrize('cropped', [(0, 0), (0, 1), (2, 1), (3, 3), (-1, 0)])
def test_ratios(scale, low, cropped):
    """An overshoot below the ratio is cropped, all else is interpolated."""
    high = [max(side, scale * side - crop) for side, crop in zip(low, cropped, strict=True)]
    module = randomize(CARAFE(4, 6, scale_factor=scale, compressed_channels=5)).double()
    x = make_tensor(2, 4, *low, dtype=torch.float64)
    guide = make_tensor(2, 6, *high, dtype=torch.float64)
    assert module(x, guide).shape == (2, 4, *high)
    check(module, {'x': x, 'guide': guide})


@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('groups', [1, 2, 6])
def test_kernel_sizes_and_groups(kernel_size, groups, dtype):
    module = CARAFE(6, kernel_size=kernel_size, groups=groups, compressed_channels=5)
    module = randomize(module).to(dtype)
    inputs = {
        'x': make_tensor(2, 6, 5, 8, mean=0.5, dtype=dtype),
        'guide': make_tensor(2, 6, 9, 16, dtype=dtype),
    }
    check(module, inputs)


@pytest.mark.parametrize(('encoder_kernel', 'encoder_dilation'), [(1, 1), (5, 1), (3, 2), (5, 3)])
def test_encoders(encoder_kernel, encoder_dilation):
    module = CARAFE(
        4,
        8,
        encoder_kernel=encoder_kernel,
        encoder_dilation=encoder_dilation,
        compressed_channels=5,
    )
    assert module.content_encoder.weight.shape == (100, 5, encoder_kernel, encoder_kernel)
    check(randomize(module).double(), make_inputs(SIZES[4], 4), encoder_dilation=encoder_dilation)


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        ({}, {}),
        ({'scale_factor': 3, 'kernel_size': 3}, {'scale_factor': 3, 'up_kernel': 3}),
        ({'groups': 4}, {'up_group': 4}),
        (
            {'encoder_kernel': 5, 'encoder_dilation': 2, 'compressed_channels': 7},
            {'encoder_kernel': 5, 'encoder_dilation': 2, 'compressed_channels': 7},
        ),
    ],
    ids=str,
)
def test_loads_what_mmcv_saved(ours, theirs):
    pack = randomize(CARAFEPack(8, **({'scale_factor': 2} | theirs))).double()
    module = CARAFE(8, 5, **ours).double()
    result = module.load_state_dict(pack.state_dict())
    assert not result.missing_keys
    assert not result.unexpected_keys
    pack.load_state_dict(module.state_dict())
    x = make_tensor(2, 8, 6, 5, dtype=torch.float64)
    # Its layers run on a CPU, its assembly does not.
    logits = pack.content_encoder(pack.channel_compressor(x))
    expected = mmcv_formula(x, logits, pack.scale_factor, pack.up_kernel, pack.up_group)
    guide = x.new_zeros(2, 5, *expected.shape[2:])
    assert_close_to_reference(module(x, guide), expected, margin=(6, 6))


def test_kernels_sum_to_one():
    """A constant map stays what it is, except where the window leaves the image."""
    x = torch.full((1, 4, 6, 7), 2.0, dtype=torch.float64)
    guide = torch.randn(1, 4, 12, 14, dtype=torch.float64)
    out = randomize(CARAFE(4)).double()(x, guide)
    torch.testing.assert_close(out[:, :, 4:-4, 4:-4], x.new_full((1, 4, 4, 6), 2.0))
    assert (out[:, :, :4] < 1.999).all()
    # With equal weights it is .36 in the corners, .6 on the edges, .8 in the ring behind them.
    module = CARAFE(4).double()
    with torch.no_grad():
        module.content_encoder.weight.zero_()
    out = module(x, guide) / 2
    for rows, cols, share in ((0, 1, 0.36), (0, 6, 0.6), (3, 6, 0.8), (2, 3, 0.64), (5, 6, 1.0)):
        torch.testing.assert_close(out[0, :, rows, cols], x.new_full((4,), share))


def test_guide_gives_the_size_alone():
    module = randomize(CARAFE(4, 6))
    x = torch.randn(2, 4, 5, 7)
    first, second = (module(x, torch.randn(2, 6, 10, 13)) for _ in range(2))
    assert torch.equal(first, second)


def test_batch_of_one():
    inputs = make_inputs(SIZES[1], dtype=torch.float32)
    check_batch_of_one(randomize(CARAFE(11, 6)), *inputs.values())


@pytest.mark.parametrize('groups', [1, 3])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_layouts(layout, groups):
    module = randomize(CARAFE(6, 4, groups=groups)).double()
    for high in ((10, 12), (9, 11), (15, 13)):
        check_layouts(module, (2, 6, 5, 6), (2, 4, *high), layout)


@pytest.mark.parametrize('high', [(4, 6), (3, 5), (7, 6)])
def test_gradcheck(high):
    # The encoder is small, as every parameter is a run of its own.
    module = CARAFE(2, 1, kernel_size=3, compressed_channels=1, encoder_kernel=1, groups=2)
    module = randomize(module).double()
    x, guide = torch.randn(1, 2, 2, 3), torch.randn(1, 1, *high)
    check_gradients_numerically(module, 'forward', x.double(), guide.double())


@pytest.mark.parametrize('guide_dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('x_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(x_dtype, guide_dtype):
    module = randomize(CARAFE(6, 4))
    for high in ((10, 12), (13, 11)):
        x = make_tensor(2, 6, 5, 6, dtype=x_dtype)
        check_autocast(module, module, x, make_tensor(2, 4, *high, dtype=guide_dtype))


def check_initial(module):
    weight = module.channel_compressor.weight
    bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
    assert weight.abs().max() <= bound
    # The law is uniform; six standard errors are allowed.
    assert weight.abs().max() > 0.99 * bound
    assert weight.std().item() == pytest.approx(
        bound / 3**0.5, rel=6 * 0.45 / weight.numel() ** 0.5
    )
    weight = module.content_encoder.weight
    assert abs(weight.mean()) < 6e-3 / weight.numel() ** 0.5
    assert weight.std().item() == pytest.approx(1e-3, rel=6 / (2 * weight.numel()) ** 0.5)
    assert weight.abs().max() > 3e-3
    for layer in (module.channel_compressor, module.content_encoder):
        assert layer.bias.eq(0).all()


def test_initial_parameters():
    module = CARAFE(128)
    check_initial(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(3.0)
    module.init_weights()
    check_initial(module)


def test_initial_parameters_inside_a_host():
    module = CARAFE(128)
    with torch.no_grad():
        for layer in (module.channel_compressor, module.content_encoder):
            layer.bias.fill_(3.0)
    check_host_initialises(module, nn.Conv2d)
    check_initial(module)


def test_init_cfg_of_the_user():
    module = CARAFE(8, init_cfg={'type': 'Constant', 'layer': 'Conv2d', 'val': 0.5, 'bias': 0.25})
    module.init_weights()
    for layer in (module.channel_compressor, module.content_encoder):
        assert layer.weight.eq(0.5).all()
        assert layer.bias.eq(0.25).all()


@pytest.mark.parametrize(
    ('options', 'parameters'),
    [
        # C d + d + (d * 9 + 1) * 4 K^2
        ({'in_channels': 256}, 256 * 64 + 64 + 577 * 100),
        ({'in_channels': 8, 'kernel_size': 3, 'scale_factor': 3, 'groups': 2}, 576 + 577 * 162),
        ({'in_channels': 8, 'compressed_channels': 4, 'encoder_kernel': 1}, 36 + 5 * 100),
    ],
    ids=str,
)
def test_parameters(options, parameters):
    assert sum(parameter.numel() for parameter in CARAFE(**options).parameters()) == parameters


def test_is_registered_and_built():
    module = MODELS.build({'type': 'CARAFE', 'in_channels': 8, 'guide_channels': 12})
    assert type(module) is CARAFE
    cfg = {'type': 'CARAFE', 'kernel_size': 3, 'groups': 2, 'compressed_channels': 5}
    module = randomize(build_upsampler(cfg, in_channels=8, guide_channels=12))
    assert type(module) is CARAFE
    assert cfg == {'type': 'CARAFE', 'kernel_size': 3, 'groups': 2, 'compressed_channels': 5}
    same = CARAFE(8, 12, kernel_size=3, groups=2, compressed_channels=5)
    same.load_state_dict(module.state_dict())
    x, guide = torch.randn(1, 8, 3, 4), torch.randn(1, 12, 6, 8)
    assert module(x, guide).shape == (1, 8, 6, 8)
    assert torch.equal(module(x, guide), same(x, guide))


@pytest.mark.parametrize(
    'argument',
    [
        'in_channels',
        'guide_channels',
        'scale_factor',
        'kernel_size',
        'groups',
        'encoder_kernel',
        'encoder_dilation',
        'compressed_channels',
    ],
)
@pytest.mark.parametrize('wrong', [0, -1, 1.0, '3', True], ids=repr)
def test_bad_option(argument, wrong):
    error = ValueError if type(wrong) is int else TypeError
    with refused(argument, str(wrong).lstrip('-'), error=error):
        CARAFE(**({'in_channels': 8} | {argument: wrong}))


def test_options_that_do_not_fit():
    with refused('kernel_size', '4', error=ValueError):
        CARAFE(8, kernel_size=4)
    with refused('encoder_kernel', '4', error=ValueError):
        CARAFE(8, encoder_kernel=4)
    with refused('groups', '8', '3', error=ValueError):
        CARAFE(8, groups=3)


def test_bad_features():
    check_refuses_features(CARAFE(8))
