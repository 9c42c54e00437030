import itertools

import pytest
import torch
from a2u_oracle import downsample, encode, upsample
from mmengine.registry import MODELS
from testing_utils import LAYOUTS, SIZES, assert_close_to_reference, border_margin, make_tensor
from torch import nn
from torch.nn import functional as F
from upsampler_oracles import (
    MODULE_DTYPES,
    avoid_kinks,
    check_against_oracle,
    check_autocast,
    check_batch_of_one,
    check_gradients_numerically,
    check_layouts,
    check_paired_protocol,
    check_refuses_encodings,
    check_refuses_features,
    check_refuses_guides,
    count,
    pad_to_even,
    randomize,
    refused,
)

from sapa_mm.upsamplers import A2U, build_upsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')

MODES = ('dynamic', 'static', 'hybrid')

#: A form of the operator is mode, channel_wise and point_wise; these are all.
FORMS = list(itertools.product(MODES, (False, True), (False, True)))

#: Every form is tested in float64, one of each mode in the other dtypes as well.
CASES = [
    (form, dtype)
    for i, form in enumerate(FORMS)
    for dtype in MODULE_DTYPES
    if dtype == torch.float64 or i % 5 == 0
]


def make_module(*args, form=('dynamic', False, False), dtype=torch.float64, **options):
    mode, channel_wise, point_wise = form
    module = A2U(*args, mode=mode, channel_wise=channel_wise, point_wise=point_wise, **options)
    randomize(module)
    module.form = form  # for the oracle
    # Larger logits would show their own rounding alone.
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith('projection'):
                parameter.mul_(0.5)
    if mode == 'dynamic':
        # The taps of the filters that it gives are alike and add up.
        with torch.no_grad():
            for layer in (module.encoder_u, module.encoder_v):
                layer.weight.mul_(0.2)
                layer.bias.mul_(0.04)
    return module.to(dtype)


def rounding(dtype):
    """Options of `check_against_oracle`.

    In bfloat16 gradients pass a product, a sum over channels and one over the map, each rounded,
    which is more than the table of tolerances allows for: worst seen 2.2e-2.
    """
    return {'grad_tolerance': 4e-2, 'one_vector': True} if dtype == torch.bfloat16 else {}


def make_inputs(module, sizes, dtype=torch.float64):
    return {
        'x': make_tensor(sizes.n, module.in_channels, *sizes.low, mean=0.5, dtype=dtype),
        'guide': make_tensor(sizes.n, module.guide_channels, *sizes.high, mean=0.3, dtype=dtype),
    }


def check(module, inputs):
    low, high = (t.shape[2:] for t in inputs.values())
    margins = {
        'output': border_margin(high, low, module.kernel_size),
        'x': (module.kernel_size // 2,) * 2,
        'guide': (3, 3),
    }
    margins['output'] = tuple(max(3, side) for side in margins['output'])
    check_against_oracle(
        module,
        module,
        lambda state, x, guide: upsample(state, x, guide, module),
        inputs,
        margins=margins,
        **rounding(inputs['x'].dtype),
    )


@pytest.mark.parametrize(('form', 'dtype'), CASES, ids=str)
@pytest.mark.parametrize('sizes', [SIZES[1], SIZES[4], SIZES[5]], ids=str)
def test_is_the_definition(form, sizes, dtype):
    module = make_module(sizes.c, sizes.d, form=form, dtype=dtype)
    check(module, make_inputs(module, sizes, dtype))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_sizes(mode, sizes):
    module = make_module(sizes.c, sizes.d, form=(mode, True, True))
    inputs = make_inputs(module, sizes)
    assert module(**inputs).shape == (sizes.n, sizes.c, *sizes.high)
    check(module, inputs)


@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize('normalization', ['sigmoid_softmax', 'softmax'])
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('point_wise', [False, True])
def test_kernel_sizes_and_normalizations(kernel_size, normalization, point_wise, dtype):
    module = make_module(
        5,
        4,
        form=('hybrid', False, point_wise),
        kernel_size=kernel_size,
        normalization=normalization,
        dtype=dtype,
    )
    inputs = {
        'x': make_tensor(2, 5, 5, 8, mean=0.5, dtype=dtype),
        'guide': make_tensor(2, 4, 9, 16, mean=0.3, dtype=dtype),
    }
    check(module, inputs)


@pytest.mark.parametrize('encoder_kernel', [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('high', [(8, 10), (9, 13), (5, 6)])
def test_encode_is_the_definition(encoder_kernel, mode, high):
    for channel_wise, point_wise in itertools.product((False, True), repeat=2):
        module = make_module(
            5, 6, form=(mode, channel_wise, point_wise), encoder_kernel=encoder_kernel
        )
        guide = make_tensor(2, 6, *high, mean=0.3, dtype=torch.float64)
        encoding = module.encode(guide)
        low = tuple(-(-side // 2) for side in high)
        assert encoding.shape == (2, 4 if point_wise else 1, *low)
        expected = encode(module.state_dict(), guide, module)
        assert_close_to_reference(encoding.detach(), expected, margin=(1, 1))


@pytest.mark.parametrize(('form', 'dtype'), CASES, ids=str)
def test_encoder_norm(form, dtype):
    module = make_module(5, 32, form=form, encoder_norm=True, dtype=dtype)
    if dtype == torch.bfloat16:
        avoid_kinks(module, weight=0.5, even=1.9, odd=-2.1)
        # Now e is ten times as large, and the sigmoid flat.
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.startswith('projection'):
                    parameter.mul_(0.1)
    for high in ((10, 8), (9, 7)):
        inputs = {
            'x': make_tensor(2, 5, 5, 4, mean=0.5, dtype=dtype),
            'guide': make_tensor(2, 32, *high, mean=0.3, dtype=dtype),
        }
        check(module, inputs)


@pytest.mark.parametrize(('form', 'dtype'), CASES, ids=str)
@pytest.mark.parametrize('high', [(10, 16), (13, 9)])
def test_downsample_is_the_definition(form, high, dtype):
    for kernel_size in (1, 3, 5):
        module = make_module(5, 4, form=form, kernel_size=kernel_size, paired=True, dtype=dtype)
        guide = {'guide': make_tensor(2, 4, *high, mean=0.3, dtype=dtype)}
        low = tuple(-(-side // 2) for side in high)
        assert module.downsample(**guide).shape == (2, 4, *low)
        check_against_oracle(
            module,
            module.downsample,
            lambda state, guide, module=module: downsample(state, guide, module),
            guide,
            margins={'output': (2, 2), 'guide': (3, 3)},
            **rounding(dtype),
        )


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('point_wise', [False, True])
@pytest.mark.parametrize(('kernel_size', 'high'), [(1, (6, 5)), (3, (10, 9)), (5, (11, 12))])
def test_taps_of_the_downsampling(mode, point_wise, kernel_size, high):
    """Single bright pixels, under the encoding of another guide, show every weight."""
    form = mode, False, point_wise
    module = make_module(1, 1, form=form, kernel_size=kernel_size, paired=True)
    if mode != 'static':
        # P shall not see them.
        nn.init.zeros_(module.projection_down.weight)
    encoding = module.encode(torch.randn(1, 1, *high, dtype=torch.float64))
    (height, width), (h, w) = high, encoding.shape[2:]
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, *high)
    weights = module.downsample(pixels, encoding.expand(len(pixels), -1, -1, -1)).detach()
    weights = weights.view(height, width, h, w)
    p = module.projection_down if mode == 'static' else module.projection_down.bias
    assert p.shape == (4 * kernel_size**2,)
    for y, x in itertools.product(range(h), range(w)):
        first = 2 * y - kernel_size + 1, 2 * x - kernel_size + 1
        last = 2 * y + kernel_size, 2 * x + kernel_size
        covered = torch.zeros(high, dtype=torch.bool)
        covered[max(first[0], 0) : last[0] + 1, max(first[1], 0) : last[1] + 1] = True
        block = weights[:, :, y, x]
        assert torch.equal(block > 0, covered)
        if min(first) >= 0 and last[0] < height and last[1] < width:
            torch.testing.assert_close(block.sum(), block.new_ones(()))
            if not point_wise:
                expected = (encoding[0, 0, y, x] * p).softmax(dim=0).sort().values
                torch.testing.assert_close(block[covered].sort().values, expected.detach())


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_downsampling_without_a_projection_is_the_mean(form):
    module = make_module(4, 3, form=form, paired=True)
    for name, parameter in module.named_parameters():
        if name.startswith('projection_down'):
            nn.init.zeros_(parameter)
    guide = torch.randn(2, 3, 12, 10, dtype=torch.float64)
    expected = F.avg_pool2d(F.pad(guide, (2, 3, 2, 3)), 6, stride=2)
    torch.testing.assert_close(module.downsample(guide), expected)


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_a_constant_guide_stays_constant_inside(form):
    module = make_module(4, 3, form=form, paired=True)
    out = module.downsample(torch.full((2, 3, 13, 16), 0.1, dtype=torch.float64))
    inside = out[:, :, 1:-2, 1:-2]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.1))
    assert (out[:, :, [0, -1]] < 0.099).all()


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_both_directions_share_the_encoders(form):
    module = make_module(4, 3, form=form, paired=True)
    x, guide = torch.randn(1, 4, 5, 6).double(), torch.randn(1, 3, 10, 12).double()
    used = {}
    for way, out in (('up', module(x, guide)), ('down', module.downsample(guide))):
        grads = torch.autograd.grad(
            out.square().sum(), list(module.parameters()), allow_unused=True
        )
        names = [name for name, _ in module.named_parameters()]
        used[way] = {n for n, grad in zip(names, grads, strict=True) if grad is not None}
        assert all(grad.abs().max() > 0 for grad in grads if grad is not None)
    assert used['up'] | used['down'] == {name for name, _ in module.named_parameters()}
    shared = used['up'] & used['down']
    assert {name.split('.')[0] for name in shared} == {'encoder_u', 'encoder_v'}
    own = count(module) - sum(p.numel() for n, p in module.named_parameters() if n in shared)
    assert own == 2 * (36 if form[0] == 'static' else 36 * 3 + 36)


def test_pools_see_the_guide_before_it_is_padded():
    module = make_module(4, 3, form=('hybrid', False, False))
    x, guide = torch.randn(1, 4, 3, 3).double(), torch.randn(1, 3, 5, 5).double()
    odd = module(x, guide)
    even = module(x, pad_to_even(guide))
    assert not torch.allclose(odd, even[:, :, :5, :5])


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_paired_protocol(form):
    for sizes in (SIZES[1], SIZES[5]._replace(high=(51, 31))):
        module = make_module(sizes.c, sizes.d, form=form, paired=True)
        check_paired_protocol(module, *make_inputs(module, sizes).values())


def test_encoding_without_downsampling():
    module = make_module(8, 6)
    inputs = make_inputs(module, SIZES[1])
    encoding = module.encode(inputs['guide'])
    assert torch.equal(module(**inputs, encoding=encoding), module(**inputs))
    with refused('paired', error=ValueError):
        module.downsample(inputs['guide'])


@pytest.mark.parametrize('mode', MODES)
def test_batch_of_one(mode):
    module = make_module(11, 6, form=(mode, False, False))
    check_batch_of_one(module, *make_inputs(module, SIZES[1]).values())


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_layouts(mode, layout):
    module = make_module(6, 4, form=(mode, True, False))
    for high in ((10, 12), (9, 11), (15, 13)):
        check_layouts(module, (2, 6, 5, 6), (2, 4, *high), layout)


@pytest.mark.parametrize('form', [*FORMS[::3], ('static', True, True)], ids=str)
def test_gradcheck(form):
    # There are few parameters, as each is a run of its own.
    kernel_size = 3 if form[0] == 'static' else 1
    module = make_module(1, 1, form=form, kernel_size=kernel_size, encoder_kernel=2, paired=True)
    x, guide = torch.randn(1, 1, 2, 2).double(), torch.randn(1, 1, 3, 4).double()
    check_gradients_numerically(module, 'forward', x, guide)
    check_gradients_numerically(module, 'downsample', guide)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('guide_dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('x_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(mode, x_dtype, guide_dtype):
    module = make_module(6, 4, form=(mode, True, False), dtype=torch.float32)
    x = make_tensor(2, 6, 5, 6, dtype=x_dtype)
    check_autocast(module, module, x, make_tensor(2, 4, 9, 12, dtype=guide_dtype))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('mode', MODES)
def test_a_graph_is_right_at_every_size(mode):
    """It has the convolution, and runs without a graph have a product in its place."""
    module = make_module(6, 4, form=(mode, False, True))
    dims = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    inputs = make_inputs(module, SIZES[1]._replace(c=6, d=4))
    exported = torch.export.export(
        module, tuple(inputs.values()), dynamic_shapes={'x': dims, 'guide': dims}
    ).module()
    traced = torch.jit.trace(module, tuple(inputs.values()), check_trace=False)
    other = make_inputs(module, SIZES[1]._replace(c=6, d=4, low=(7, 9), high=(14, 18)))
    for graph, maps in ((exported, inputs), (exported, other), (traced, inputs)):
        torch.testing.assert_close(graph(*maps.values()), module(**maps))


class Pool(torch.nn.Module):
    """The downsampling alone."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, guide):
        return self.module.downsample(guide)


@pytest.mark.parametrize('mode', MODES)
def test_a_graph_downsamples_at_every_size(mode):
    pool = Pool(make_module(6, 4, form=(mode, False, False), paired=True, dtype=torch.float32))
    guide, other = make_tensor(1, 4, 9, 13), make_tensor(1, 4, 14, 10)
    dims = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(pool, (guide,), dynamic_shapes={'guide': dims})
    (out,) = next(node for node in program.graph.nodes if node.op == 'output').args[0]
    # Were it a formula of the sizes, ONNX could write no convolution of it.
    assert out.meta['val'].shape[1] == 4 and isinstance(out.meta['val'].shape[1], int)
    for maps in (guide, other):
        torch.testing.assert_close(program.module()(maps), pool(maps))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('channel_wise', [False, True])
def test_compiled(mode, channel_wise):
    module = make_module(6, 4, form=(mode, channel_wise, False))
    maps = make_inputs(module, SIZES[1]._replace(c=6, d=4))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager', dynamic=False)
    results = []
    for function in (compiled, module):
        leaves = [x.detach().requires_grad_() for x in maps.values()]
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ('options', 'parameters'),
    [
        ({'mode': 'static', 'point_wise': True, 'channel_wise': True}, 102_544),
        ({'mode': 'static', 'channel_wise': True}, 25_744),
        ({'mode': 'hybrid', 'channel_wise': True}, 44_176),
        ({'mode': 'hybrid'}, 18_776),
        ({'channel_wise': True}, 199_824),
        ({}, 19_608),
        ({'paired': True}, 38_184),
    ],
    ids=str,
)
def test_parameters_the_paper_reports(options, parameters):
    """Of its four matting stages."""
    assert sum(count(A2U(channels, **options)) for channels in (64, 64, 128, 256)) == parameters


@pytest.mark.parametrize(
    ('options', 'parameters'),
    [
        ({}, 2 * 13 + 36 * 13),
        ({'kernel_size': 5}, 2 * 13 + 100 * 13),
        ({'point_wise': True}, 8 * 13 + 36 * 13),
        ({'mode': 'static', 'encoder_kernel': 6}, 2 * 36 + 36),
        ({'mode': 'static', 'paired': True}, 2 * 25 + 2 * 36),
        ({'guide_channels': 32, 'encoder_norm': True}, 2 * 33 + 36 * 33 + 4 * 32),
    ],
    ids=str,
)
def test_parameters(options, parameters):
    assert count(A2U(8, **({'guide_channels': 12} | options))) == parameters


def test_is_registered_and_built():
    module = MODELS.build({'type': 'A2U', 'in_channels': 8, 'guide_channels': 12})
    assert type(module) is A2U
    x, guide = torch.randn(1, 8, 3, 4), torch.randn(1, 12, 6, 8)
    for mode in MODES:
        cfg = {'type': 'A2U', 'mode': mode, 'encoder_kernel': 6, 'paired': True}
        module = randomize(build_upsampler(cfg, in_channels=8, guide_channels=12))
        assert type(module) is A2U
        same = A2U(8, 12, mode=mode, encoder_kernel=6, paired=True)
        same.load_state_dict(module.state_dict())
        assert module(x, guide).shape == (1, 8, 6, 8)
        assert torch.equal(module(x, guide), same(x, guide))
        assert torch.equal(module.downsample(guide), same.downsample(guide))


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_init_weights(form):
    module = A2U(8, mode=form[0], channel_wise=form[1], point_wise=form[2], paired=True)
    module.init_weights()
    for name, parameter in module.named_parameters():
        assert parameter.isfinite().all()
        # The two factors of e, and all that is multiplied with it, must leave 0 for it to learn.
        if not name.endswith('bias'):
            assert parameter.std() > 0, name


def test_init_cfg_of_the_user():
    module = A2U(8, init_cfg={'type': 'Constant', 'layer': 'Conv2d', 'val': 0.5, 'bias': 0.25})
    module.init_weights()
    for layer in (module.encoder_u, module.encoder_v, module.projection_up):
        assert layer.weight.eq(0.5).all()
        assert layer.bias.eq(0.25).all()


@pytest.mark.parametrize(
    'argument', ['in_channels', 'guide_channels', 'kernel_size', 'encoder_kernel']
)
@pytest.mark.parametrize('wrong', [0, -1, 3.0, '3', True], ids=repr)
def test_bad_number(argument, wrong):
    with refused(argument, error=ValueError if type(wrong) is int else TypeError):
        A2U(**({'in_channels': 8} | {argument: wrong}))


@pytest.mark.parametrize(
    ('argument', 'choices'),
    [('mode', MODES), ('normalization', ('sigmoid_softmax', 'softmax'))],
)
@pytest.mark.parametrize('wrong', ['nonsense', None, 3, ['static']], ids=repr)
def test_unknown_choice(argument, choices, wrong):
    with refused(argument, *choices):
        A2U(8, **{argument: wrong})


@pytest.mark.parametrize('argument', ['channel_wise', 'point_wise', 'encoder_norm', 'paired'])
@pytest.mark.parametrize('wrong', ['True', 1, None], ids=repr)
def test_bad_switch(argument, wrong):
    with refused(argument, str(wrong), error=TypeError):
        A2U(32, **{argument: wrong})


def test_options_that_do_not_fit():
    with refused('kernel_size', '4', error=ValueError):
        A2U(8, kernel_size=4)
    with refused('guide_channels', '32', '48', error=ValueError):
        A2U(8, 48, encoder_norm=True)


@pytest.mark.parametrize('mode', MODES)
def test_bad_features(mode):
    module = A2U(8, mode=mode, paired=True)
    check_refuses_features(module)
    check_refuses_guides(module)
    check_refuses_encodings(module)
