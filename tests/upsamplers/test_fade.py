import math

import pytest
import torch
from mmengine.registry import MODELS
from testing_utils import COMPILED_SIZES, LAYOUTS, SIZES, border_margin, make_tensor
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
    to_parent_grid,
)

from sapa_mm.upsamplers import FADE, FADELite, build_upsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')

KINDS = [FADE, FADELite]


def encode(x, weight, bias):
    """A 3x3 convolution with zeros around, as a sum over its places; depthwise if need be."""
    padded, (h, w) = F.pad(x, (1, 1, 1, 1)), x.shape[2:]
    out = bias[:, None, None]
    for dy in range(3):
        for dx in range(3):
            seen = padded[:, :, dy : dy + h, dx : dx + w]
            if weight.shape[1] == 1 < x.shape[1]:
                out = out + weight[:, 0, dy, dx, None, None] * seen
            else:
                out = out + torch.einsum('oc,nchw->nohw', weight[:, :, dy, dx], seen)
    return out


def oracle_of(module):
    """The definition of a module: ``oracle(state, x, guide)``."""
    radius = module.kernel_size // 2

    def compress(x, name, state):
        out = torch.einsum('oc,nchw->nohw', state[f'{name}.weight'][:, :, 0, 0], x)
        return out + state[f'{name}.bias'][:, None, None] if f'{name}.bias' in state else out

    def oracle(state, x, guide):
        size = tuple(guide.shape[2:])
        encoder = state['content_encoder.weight'], state['content_encoder.bias']
        logits = encode(compress(guide, 'guide_compressor', state), *encoder)
        coarse = encode(compress(x, 'compressor', state), *encoder)
        exp = (logits + to_parent_grid(coarse, size)).exp()
        weights = exp / exp.sum(1, keepdim=True)
        padded, (h, w) = F.pad(x, (radius,) * 4), x.shape[2:]
        assembled = 0
        for p in range(module.kernel_size**2):
            dy, dx = divmod(p, module.kernel_size)
            neighbour = to_parent_grid(padded[:, :, dy : dy + h, dx : dx + w], size)
            assembled = assembled + weights[:, p : p + 1] * neighbour
        gate = to_parent_grid(1 / (1 + (-compress(x, 'gate', state)).exp()), size)
        return gate * guide + (1 - gate) * assembled

    return oracle


def make_inputs(sizes, dtype=torch.float64, **options):
    return {
        'x': make_tensor(sizes.n, sizes.c, *sizes.low, mean=0.5, dtype=dtype, **options),
        'guide': make_tensor(sizes.n, sizes.c, *sizes.high, dtype=dtype, **options),
    }


def check(module, inputs):
    low, high = (t.shape[2:] for t in inputs.values())
    reach = max(module.kernel_size, 3)
    margins = {
        'output': border_margin(high, low, reach),
        'x': (reach // 2,) * 2,
        'guide': (1, 1),
    }
    # Sums over all pixels nearly cancel in some of the biases.
    check_against_oracle(
        module, module, oracle_of(module), inputs, margins=margins, one_vector=True
    )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_is_the_definition(sizes, dtype, kind):
    # These have every ratio, and one where nearest interpolation in float32 misses a parent.
    module = randomize(kind(sizes.c, kernel_size=3)).to(dtype)
    check(module, make_inputs(sizes, dtype))


@pytest.mark.parametrize('ratio', [1, 2, 3, 4])
@pytest.mark.parametrize('low', [(5, 4), (3, 7), (1, 1)])
@pytest.mark.parametrize('more', [(0, 0), (-1, 0), (-1, -2), (1, 0)])
@pytest.mark.parametrize('kind', KINDS)
def test_ratios(ratio, low, more, kind):
    high = [max(side, ratio * side + add) for side, add in zip(low, more, strict=True)]
    module = randomize(kind(4)).double()
    x = make_tensor(2, 4, *low, dtype=torch.float64)
    check(module, {'x': x, 'guide': make_tensor(2, 4, *high, dtype=torch.float64)})


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
def test_kernel_sizes(kernel_size, kind):
    module = randomize(kind(6, kernel_size=kernel_size)).double()
    assert module.content_encoder.out_channels == kernel_size**2
    check(module, make_inputs(SIZES[4]))


def test_one_encoder_serves_both_features():
    """Its bias comes in with either, and softmax sees both."""
    module = randomize(FADE(4, kernel_size=3)).double()
    for layer in (module.compressor, module.guide_compressor):
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(module.guide_compressor.bias)
    x, guide = (make_tensor(1, 4, *size, dtype=torch.float64) for size in ((4, 5), (8, 10)))
    kernels = module.predict_kernels(x, guide)
    expected = (2 * module.content_encoder.bias).softmax(0)
    torch.testing.assert_close(kernels, expected[None, :, None, None].expand_as(kernels))


def test_gate():
    """Open it gives the guide, shut the assembly; it is constant over the cell of a pixel of x."""
    module = randomize(FADE(4)).double()
    nn.init.zeros_(module.gate.weight)
    x, guide = (make_tensor(1, 4, *size, dtype=torch.float64) for size in ((3, 4), (7, 9)))
    outs = {}
    for bias in (-40.0, 0.0, 40.0):
        nn.init.constant_(module.gate.bias, bias)
        outs[bias] = module(x, guide)
    torch.testing.assert_close(outs[40.0], guide)
    torch.testing.assert_close(outs[0.0], (guide + outs[-40.0]) / 2)
    assert not torch.allclose(outs[-40.0], guide)
    module.gate.weight.data[0, 0] = 1.0
    upsampled = torch.zeros_like(guide)
    gate = module.mix(x, torch.ones_like(guide), upsampled)
    torch.testing.assert_close(
        gate, to_parent_grid((x[:, :1] + 40).sigmoid(), (7, 9)).expand_as(gate)
    )


@pytest.mark.parametrize('kind', KINDS)
def test_starts_as_the_mean_of_the_window(kind):
    module = kind(4, kernel_size=3).double()
    nn.init.constant_(module.gate.bias, -40.0)
    nn.init.zeros_(module.gate.weight)
    nn.init.zeros_(module.content_encoder.weight)
    x = make_tensor(2, 4, 5, 6, dtype=torch.float64)
    expected = to_parent_grid(F.avg_pool2d(x, 3, stride=1, padding=1), (10, 13))
    torch.testing.assert_close(module(x, x.new_zeros(2, 4, 10, 13)), expected)


@pytest.mark.parametrize('kind', KINDS)
def test_batch_of_one(kind):
    check_batch_of_one(randomize(kind(11)), *make_inputs(SIZES[1], dtype=torch.float32).values())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_layouts(layout, kind):
    module = randomize(kind(6)).double()
    for high in ((10, 12), (9, 11), (15, 13)):
        check_layouts(module, (2, 6, 5, 6), (2, 6, *high), layout)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('high', [(4, 6), (3, 5), (7, 6)])
def test_gradcheck(high, kind):
    # The layers are small, as every parameter is a run of its own.
    options = {'compressed_channels': 1} if kind is FADE else {}
    module = randomize(kind(2, kernel_size=3, **options)).double()
    x, guide = torch.randn(1, 2, 2, 3), torch.randn(1, 2, *high)
    check_gradients_numerically(module, 'forward', x.double(), guide.double())


@pytest.mark.parametrize('guide_dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('x_dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_autocast(x_dtype, guide_dtype, kind):
    module = randomize(kind(6))
    for high in ((10, 12), (13, 11)):
        x = make_tensor(2, 6, 5, 6, dtype=x_dtype)
        check_autocast(module, module, x, make_tensor(2, 6, *high, dtype=guide_dtype))


@pytest.mark.parametrize('kind', KINDS)
def test_compile(kind):
    torch._dynamo.reset()
    module = randomize(kind(6)).double()
    compiled = torch.compile(module, backend='aot_eager', fullgraph=True, dynamic=True)
    for sizes in COMPILED_SIZES:
        x = make_tensor(sizes.n, 6, *sizes.low, dtype=torch.float64)
        guide = make_tensor(sizes.n, 6, *sizes.high, dtype=torch.float64)
        torch.testing.assert_close(compiled(x, guide), module(x, guide))


def check_initial(module):
    layers = (module.compressor, module.guide_compressor, module.content_encoder, module.gate)
    for layer in layers:
        weight = layer.weight
        bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()))
        assert weight.abs().max() <= bound
        # The law is uniform; six standard errors are allowed.
        assert weight.std().item() == pytest.approx(
            bound / 3**0.5, rel=6 * 0.45 / weight.numel() ** 0.5
        )
    assert module.compressor.bias is None
    for layer in layers[1:]:
        assert layer.bias.eq(0).all()


@pytest.mark.parametrize('kind', KINDS)
def test_initial_parameters(kind):
    module = kind(128)
    check_initial(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(3.0)
    module.init_weights()
    check_initial(module)


@pytest.mark.parametrize('kind', KINDS)
def test_initial_parameters_inside_a_host(kind):
    module = kind(128)
    check_host_initialises(module, nn.Conv2d)
    check_initial(module)


def test_init_cfg_of_the_user():
    module = FADE(8, init_cfg={'type': 'Constant', 'layer': 'Conv2d', 'val': 0.5, 'bias': 0.25})
    module.init_weights()
    for name, parameter in module.named_parameters():
        assert parameter.eq(0.5 if name.endswith('weight') else 0.25).all(), name


@pytest.mark.parametrize(
    ('kind', 'options', 'parameters'),
    [
        # 2 C d + d + (9 d + 1) K^2 + C + 1
        (FADE, {}, 47_514),
        (FADE, {'kernel_size': 3, 'compressed_channels': 8}, 4096 + 8 + 73 * 9 + 257),
        # 2 C K^2 + K^2 + 10 K^2 + C + 1
        (FADELite, {}, 13_332),
        (FADELite, {'kernel_size': 3}, 512 * 9 + 11 * 9 + 257),
    ],
    ids=str,
)
def test_parameters(kind, options, parameters):
    assert count(kind(256, **options)) == parameters


@pytest.mark.parametrize(
    ('kind', 'options', 'low', 'high'),
    [
        # A pixel of x: C d + 9 d K^2 + C; of the guide: C d + 9 d K^2 + K^2 C + 2 C.
        (FADE, {}, 16_384 + 14_400 + 256, 16_384 + 14_400 + 6_400 + 512),
        (FADE, {'kernel_size': 3, 'compressed_channels': 8}, 2_048 + 648 + 256, 2_696 + 11 * 256),
        (FADELite, {}, 6_400 + 225 + 256, 6_400 + 225 + 6_400 + 512),
    ],
    ids=str,
)
def test_flops(kind, options, low, high):
    assert kind(256, **options).flops((3, 5), (7, 9)) == 15 * low + 63 * high


def test_what_the_authors_report_of_segformer():
    """Their README adds 0.29 M parameters and 2.65 GFLOPs to SegFormer-B1 at 512 x 512."""
    module = FADE(256)
    sides = (16, 32, 32, 64, 64, 64)
    total = sum(module.flops((side, side), (2 * side, 2 * side)) for side in sides)
    assert f'{6 * count(module) / 1e6:.2f}' == '0.29'
    assert f'{total / 1e9:.2f}' == '2.65'


@pytest.mark.parametrize('kind', KINDS)
def test_is_registered_and_built(kind):
    cfg = {'type': kind.__name__, 'kernel_size': 3}
    module = MODELS.build({**cfg, 'in_channels': 8, 'guide_channels': 8})
    assert type(module) is kind
    built = randomize(build_upsampler(cfg, in_channels=8))
    assert type(built) is kind
    module.load_state_dict(built.state_dict())
    x, guide = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 6, 8)
    assert torch.equal(built(x, guide), module(x, guide))
    assert 'kernel_size=3' in repr(module)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('argument', ['in_channels', 'guide_channels', 'kernel_size'])
@pytest.mark.parametrize('wrong', [0, -1, 1.0, '3', True], ids=repr)
def test_bad_option(argument, wrong, kind):
    error = ValueError if type(wrong) is int else TypeError
    with refused(argument, str(wrong).lstrip('-'), error=error):
        kind(**({'in_channels': 8} | {argument: wrong}))


def test_options_that_do_not_fit():
    for kind in KINDS:
        with refused('kernel_size', '4', error=ValueError):
            kind(8, kernel_size=4)
        with refused('guide_channels', 'gate', '8', '6', error=ValueError):
            kind(8, 6)
    with refused('compressed_channels', '0', error=ValueError):
        FADE(8, compressed_channels=0)


@pytest.mark.parametrize('kind', KINDS)
def test_bad_features(kind):
    check_refuses_features(kind(8))
