import pytest
import torch
from mmengine.registry import MODELS
from testing_utils import (
    COMPILED_SIZES,
    LAYOUTS,
    SIZES,
    TOLERANCES,
    forward_and_gradients,
    make_tensor,
)
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
    count,
    randomize,
    refused,
    shuffle,
)

from sapa_mm.upsamplers import DySample, build_upsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')


def hats(positions, length):
    """Weights (..., length) of linear interpolation, the first and last repeated outside.

    Every pixel is a hat of width 2, so that nothing here rounds a position down.
    """
    inside = positions.clamp(0, length - 1)
    return (1 - (inside[..., None] - torch.arange(length)).abs()).clamp(min=0)


def linear(x, state, name):
    """A 1x1 convolution, as a product of matrices."""
    out = torch.einsum('oc,nchw->nohw', state[f'{name}.weight'][:, :, 0, 0], x)
    return out + state[f'{name}.bias'][:, None, None] if f'{name}.bias' in state else out


def oracle_of(module):
    """The definition of a module: ``oracle(state, x, guide)``."""
    s, groups = module.scale_factor, module.groups

    def oracle(state, x, guide):
        seen = shuffle(x, s) if module.style == 'pl' else x
        offsets = 0.25 * linear(seen, state, 'offset')
        if module.dynamic_scope:
            offsets = 2 * offsets / (1 + (-linear(seen, state, 'scope')).exp())
        offsets = offsets if module.style == 'pl' else shuffle(offsets, s)
        # The centre of a pixel of x has the pixel's number for its coordinate here.
        rows, columns = (
            (torch.arange(side, dtype=torch.float64) + 0.5) / s - 0.5 for side in offsets.shape[2:]
        )
        width = x.shape[1] // groups
        parts = []
        for group in range(groups):
            down = hats(rows[:, None] + offsets[:, groups + group], x.shape[2])
            across = hats(columns + offsets[:, group], x.shape[3])
            part = x[:, group * width : (group + 1) * width]
            parts.append(torch.einsum('nijy,nijx,ncyx->ncij', down, across, part))
        out = torch.cat(parts, dim=1)
        size = tuple(guide.shape[2:])
        if all(0 <= a - b < s for a, b in zip(out.shape[2:], size, strict=True)):
            return out[:, :, : size[0], : size[1]]
        return F.interpolate(out, size, mode='bilinear', align_corners=False)

    return oracle


def make(*args, reach=1.0, **options):
    """A module whose offsets have about a quarter of ``reach`` pixels."""
    module = randomize(DySample(*args, **options))
    with torch.no_grad():
        for parameter in module.offset.parameters():
            parameter.mul_(reach)
    return module


def check(module, x, guide):
    margins = {'output': (module.scale_factor,) * 2, 'x': (1, 1)}
    check_against_oracle(
        module, module, oracle_of(module), {'x': x, 'guide': guide}, margins=margins
    )


def reach_of(dtype):
    """Half precision must not step over the centre of a pixel, where the gradient jumps."""
    return 0.1 if dtype == torch.bfloat16 else 3.0


@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_is_the_definition(sizes, dtype):
    # The fixed ratio of 2 gives doubled, cropped and interpolated sizes.
    module = make(sizes.c, sizes.d, groups=1, reach=reach_of(dtype)).to(dtype)
    x = make_tensor(sizes.n, sizes.c, *sizes.low, mean=0.5, dtype=dtype)
    check(module, x, make_tensor(sizes.n, sizes.d, *sizes.high, dtype=dtype))


@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize('dynamic_scope', [False, True])
@pytest.mark.parametrize('groups', [1, 3, 12])
@pytest.mark.parametrize('style', ['lp', 'pl'])
def test_styles_groups_and_scopes(style, groups, dynamic_scope, dtype):
    options = dict(style=style, groups=groups, dynamic_scope=dynamic_scope)
    module = make(12, 5, reach=reach_of(dtype), **options).to(dtype)
    x = make_tensor(2, 12, 5, 8, mean=0.5, dtype=dtype)
    check(module, x, make_tensor(2, 5, 9, 16, dtype=dtype))


@pytest.mark.parametrize('style', ['lp', 'pl'])
@pytest.mark.parametrize('scale', [1, 2, 3, 4])
@pytest.mark.parametrize('low', [(5, 4), (3, 7), (1, 1)])
@pytest.mark.parametrize('cropped', [(0, 0), (0, 1), (2, 1), (3, 3), (-1, 0)])
def test_ratios(scale, low, cropped, style):
    """An overshoot below the ratio is cropped, all else is interpolated."""
    high = [max(side, scale * side - crop) for side, crop in zip(low, cropped, strict=True)]
    channels = 2 * scale**2
    module = make(channels, 3, scale_factor=scale, groups=2, style=style, reach=3.0).double()
    x = make_tensor(2, channels, *low, dtype=torch.float64)
    guide = make_tensor(2, 3, *high, dtype=torch.float64)
    assert module(x, guide).shape == (2, channels, *high)
    check(module, x, guide)


@pytest.mark.parametrize('style', ['lp', 'pl'])
@pytest.mark.parametrize('scale', [1, 2, 3, 4])
def test_without_offsets_it_is_bilinear_interpolation(scale, style):
    module = DySample(2 * scale**2, scale_factor=scale, style=style, groups=2).double()
    nn.init.zeros_(module.offset.weight)
    x = make_tensor(2, 2 * scale**2, 7, 10, dtype=torch.float64)
    guide = make_tensor(2, 2 * scale**2, 7 * scale, 10 * scale, dtype=torch.float64)
    grad = make_tensor(*guide.shape, dtype=torch.float64)
    expected = forward_and_gradients(
        lambda x: F.interpolate(x, scale_factor=scale, mode='bilinear', align_corners=False),
        [x],
        grad,
    )
    # The offsets' own gradient reaches x through their layer, whose weights are 0.
    actual = forward_and_gradients(lambda x: module(x, guide), [x], grad)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(('axis', 'first'), [(3, 0), (2, 16)])
def test_an_offset_is_in_pixels_of_its_group(axis, first):
    """Biases have the order (axis, group, row, column): 4 of them move a group by one pixel."""
    module = DySample(4, groups=4).double()
    nn.init.zeros_(module.offset.weight)
    with torch.no_grad():
        module.offset.bias[first + 4 : first + 8] = 4.0
    x = make_tensor(1, 4, 5, 6, dtype=torch.float64)
    guide = x.new_zeros(1, 4, 10, 12)
    shifted = x.clone()
    following = torch.arange(1, x.shape[axis] + 1).clamp(max=x.shape[axis] - 1)
    shifted[:, 1] = x.index_select(axis, following)[:, 1]
    expected = F.interpolate(shifted, scale_factor=2, mode='bilinear', align_corners=False)
    # At the borders the shifted map repeats other pixels.
    inside = [slice(None)] * 4
    inside[axis] = slice(1, -3)
    torch.testing.assert_close(module(x, guide)[tuple(inside)], expected[tuple(inside)])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_positions_of_a_large_map_are_exact_in_half_precision(dtype):
    """Stripes of one pixel: half precision counts pixels of 4,000 by twos, or by thirty-twos."""
    module = DySample(4).to(dtype)
    nn.init.zeros_(module.offset.weight)
    x = torch.arange(4000).remainder(2).to(dtype).expand(1, 4, 2, 4000)
    out = module(x, x.new_zeros(1, 4, 4, 8000))
    assert out.dtype == dtype
    expected = F.interpolate(x.float(), scale_factor=2, mode='bilinear', align_corners=False)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=TOLERANCES[dtype])


def test_guide_gives_the_size_alone():
    module = make(4, 6)
    x = torch.randn(2, 4, 5, 7)
    first, second = (module(x, torch.randn(2, 6, 10, 13)) for _ in range(2))
    assert torch.equal(first, second)


def test_batch_of_one():
    x, guide = make_tensor(2, 8, 5, 8), make_tensor(2, 6, 10, 16)
    check_batch_of_one(make(8, 6, dynamic_scope=True), x, guide)


@pytest.mark.parametrize('style', ['lp', 'pl'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_layouts(layout, style):
    module = make(8, 4, style=style, reach=2.0).double()
    for high in ((10, 12), (9, 11), (15, 13)):
        check_layouts(module, (2, 8, 5, 6), (2, 4, *high), layout)


@pytest.mark.parametrize('style', ['lp', 'pl'])
@pytest.mark.parametrize('high', [(4, 6), (3, 5), (7, 6)])
def test_gradcheck(high, style):
    module = make(4, 1, style=style, groups=2, dynamic_scope=True).double()
    x, guide = torch.randn(1, 4, 2, 3), torch.randn(1, 1, *high)
    check_gradients_numerically(module, 'forward', x.double(), guide.double())


@pytest.mark.parametrize('guide_dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('x_dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('dynamic_scope', [False, True])
def test_autocast(x_dtype, guide_dtype, dynamic_scope):
    module = make(8, 4, dynamic_scope=dynamic_scope)
    for high in ((10, 12), (13, 11)):
        x = make_tensor(2, 8, 5, 6, dtype=x_dtype)
        check_autocast(module, module, x, make_tensor(2, 4, *high, dtype=guide_dtype))


@pytest.mark.parametrize('options', [{}, {'style': 'pl', 'dynamic_scope': True}], ids=str)
def test_compile(options):
    torch._dynamo.reset()
    module = make(8, 6, **options).double()
    compiled = torch.compile(module, backend='aot_eager', fullgraph=True, dynamic=True)
    for sizes in COMPILED_SIZES:
        x = make_tensor(sizes.n, 8, *sizes.low, dtype=torch.float64)
        guide = make_tensor(sizes.n, 6, *sizes.high, dtype=torch.float64)
        torch.testing.assert_close(compiled(x, guide), module(x, guide))


def check_initial(module):
    weight = module.offset.weight
    assert abs(weight.mean()) < 6e-3 / weight.numel() ** 0.5
    assert weight.std().item() == pytest.approx(1e-3, rel=6 / (2 * weight.numel()) ** 0.5)
    assert module.offset.bias.eq(0).all()
    assert module.scope.weight.eq(0).all()
    assert module.scope.bias is None


def test_initial_parameters():
    module = DySample(256, dynamic_scope=True)
    check_initial(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(3.0)
    module.init_weights()
    check_initial(module)


def test_initial_parameters_inside_a_host():
    module = DySample(256, dynamic_scope=True)
    with torch.no_grad():
        module.offset.bias.fill_(3.0)
    check_host_initialises(module, nn.Conv2d)
    check_initial(module)


def test_init_cfg_of_the_user():
    module = DySample(8, init_cfg={'type': 'Constant', 'layer': 'Conv2d', 'val': 0.5, 'bias': 0.25})
    module.init_weights()
    assert module.offset.weight.eq(0.5).all()
    assert module.offset.bias.eq(0.25).all()


def test_the_scope_starts_at_a_quarter():
    scoped, plain = DySample(8, dynamic_scope=True), DySample(8)
    randomize(plain)
    scoped.offset.load_state_dict(plain.offset.state_dict())
    x, guide = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 8, 10)
    torch.testing.assert_close(scoped(x, guide), plain(x, guide))


@pytest.mark.parametrize(
    ('options', 'parameters'),
    [
        # 2 G s^2 (C + 1), with the scope 2 G s^2 C more; 'pl' has C / s^2 for C and no s^2.
        ({}, 8_224),
        ({'dynamic_scope': True}, 16_416),
        ({'style': 'pl'}, 520),
        ({'style': 'pl', 'dynamic_scope': True}, 1_032),
        ({'scale_factor': 4, 'groups': 8}, 256 * 257),
        ({'style': 'pl', 'scale_factor': 4, 'groups': 8}, 16 * 17),
    ],
    ids=str,
)
def test_parameters(options, parameters):
    assert count(DySample(256, **options)) == parameters


@pytest.mark.parametrize(
    ('options', 'flops'),
    [
        # 2 G s^2 C + 4 s^2 C
        ({}, 32 * 256 + 16 * 256),
        ({'dynamic_scope': True}, 2 * 32 * 256 + 32 + 16 * 256),
        ({'style': 'pl'}, 8 * 256 + 16 * 256),
        ({'style': 'pl', 'scale_factor': 4, 'dynamic_scope': True}, 16 * 256 + 128 + 64 * 256),
    ],
    ids=str,
)
def test_flops(options, flops):
    module = DySample(256, **options)
    assert module.flops((3, 5), (6, 10)) == module.flops((3, 5), (5, 9)) == 15 * flops


def test_is_registered_and_built():
    cfg = {'type': 'DySample', 'style': 'pl', 'groups': 2, 'dynamic_scope': True}
    module = MODELS.build({**cfg, 'in_channels': 8, 'guide_channels': 12})
    assert type(module) is DySample
    built = randomize(build_upsampler(cfg, in_channels=8, guide_channels=12))
    module.load_state_dict(built.state_dict())
    x, guide = torch.randn(1, 8, 3, 4), torch.randn(1, 12, 6, 8)
    assert torch.equal(built(x, guide), module(x, guide))
    assert "style='pl', groups=2, dynamic_scope=True" in repr(module)
    # A checkpoint of the authors' module has these names, and a buffer.
    assert set(module.state_dict()) == {'offset.weight', 'offset.bias', 'scope.weight'}


@pytest.mark.parametrize('argument', ['in_channels', 'guide_channels', 'scale_factor', 'groups'])
@pytest.mark.parametrize('wrong', [0, -1, 1.0, '3', True], ids=repr)
def test_bad_option(argument, wrong):
    error = ValueError if type(wrong) is int else TypeError
    with refused(argument, str(wrong).lstrip('-'), error=error):
        DySample(**({'in_channels': 8} | {argument: wrong}))


def test_options_that_do_not_fit():
    with refused('groups', '8', '3', error=ValueError):
        DySample(8, groups=3)
    with refused('style', 'lp, pl', 'nearest', error=ValueError):
        DySample(8, style='nearest')
    with refused('scale_factor', 'pl', '8', '3', error=ValueError):
        DySample(8, style='pl', scale_factor=3)
    with refused('dynamic_scope', '1', error=TypeError):
        DySample(8, dynamic_scope=1)


def test_bad_features():
    check_refuses_features(DySample(8))
