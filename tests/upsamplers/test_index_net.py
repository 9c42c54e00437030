import pytest
import torch
from mmengine.registry import MODELS
from testing_utils import LAYOUTS, SIZES, make_tensor
from torch import nn
from torch.nn import functional as F
from upsampler_oracles import (
    MODULE_DTYPES,
    avoid_kinks,
    blocks,
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
    shuffle,
    to_parent_grid,
)

from sapa_mm.upsamplers import IndexNet, build_upsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')

VARIANTS = ('hin', 'm2o', 'o2o')

#: A form of the operator is variant, context and nonlinear; these are all.
FORMS = [
    (variant, context, nonlinear)
    for variant in VARIANTS
    for context in (True, False)
    for nonlinear in (True, False)
]


def rounding(module, form, dtype):
    """Options of `check_against_oracle`, for which the module is changed in place.

    In bfloat16 the gradients pass a BatchNorm of torch's, which rounds them more often than the
    table of tolerances allows for: worst seen 2.1e-2.
    """
    if dtype != torch.bfloat16 or not form[2]:
        return {}
    keep_smooth(module)
    return {'grad_tolerance': 4e-2, 'one_vector': True}


def make_module(in_channels, guide_channels, form, dtype=torch.float64, **options):
    variant, context, nonlinear = form
    if variant == 'o2o':
        guide_channels = in_channels
    module = IndexNet(
        in_channels,
        guide_channels,
        variant=variant,
        context=context,
        nonlinear=nonlinear,
        **options,
    )
    randomize(module)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.7, 1.3)
    return module.to(dtype)


def keep_smooth(module):
    """Keep off where ReLU6 bends and the sigmoid is flat: rounding errors would be all there is."""
    avoid_kinks(module, weight=0.8, even=2.9, odd=3.1)
    with torch.no_grad():
        for branch in module.encoders:
            branch[-1].weight.mul_(0.3)


def make_inputs(module, sizes, dtype=torch.float64):
    return {
        'x': make_tensor(sizes.n, module.in_channels, *sizes.low, mean=0.5, dtype=dtype),
        'guide': make_tensor(sizes.n, module.guide_channels, *sizes.high, mean=0.3, dtype=dtype),
    }


def batch_norm(z, state, prefix, training):
    """BatchNorm of (N, C, h, w), written out."""
    weight, bias = state[f'{prefix}.weight'], state[f'{prefix}.bias']
    if training:
        mean = z.mean(dim=(0, 2, 3))
        var = (z - mean[:, None, None]).square().mean(dim=(0, 2, 3))
    else:
        mean, var = state[f'{prefix}.running_mean'], state[f'{prefix}.running_var']
    z = (z - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return weight[:, None, None] * z + bias[:, None, None]


def encode(state, guide, form, training=True):
    """z (N, I, 4, h, w): what the sigmoid is taken of, at every sub-position of a 2 x 2 block."""
    variant, context, nonlinear = form
    guide = pad_to_even(guide)
    results = []
    for branch in range(1 if variant == 'hin' else 4):
        prefix = f'encoders.{branch}'
        weight = state[f'{prefix}.0.weight']
        assert weight.shape[2:] == ((4, 4) if context else (2, 2))
        groups = guide.shape[1] if variant == 'o2o' else 1
        z = F.conv2d(guide, weight, stride=2, padding=1 if context else 0, groups=groups)
        if nonlinear:
            z = batch_norm(z, state, f'{prefix}.1', training).clamp(0, 6)
            z = F.conv2d(z, state[f'{prefix}.3.weight'], groups=groups)
        results.append(z)
    # The channels of the holistic index's one encoder are the sub-positions.
    return results[0][:, None] if variant == 'hin' else torch.stack(results, dim=2)


def upsample(z, x, size):
    index = shuffle(z.flatten(1, 2).sigmoid(), 2)[:, :, : size[0], : size[1]]
    return index * to_parent_grid(x, size)


def downsample(z, guide):
    return (z.sigmoid().softmax(dim=2) * blocks(pad_to_even(guide))).sum(dim=2)


@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize(
    ('form', 'training'),
    # The linear ones have no BatchNorm.
    [(form, True) for form in FORMS] + [(form, False) for form in FORMS[::4]],
    ids=str,
)
@pytest.mark.parametrize('sizes', [SIZES[1], SIZES[4], SIZES[5]], ids=str)
def test_is_the_definition(form, training, sizes, dtype):
    module = make_module(sizes.c, sizes.d, form, dtype).train(training)
    options = rounding(module, form, dtype)
    check_against_oracle(
        module,
        module,
        lambda state, x, guide: upsample(encode(state, guide, form, training), x, sizes.high),
        make_inputs(module, sizes, dtype),
        margins={'output': (2, 2), 'guide': (2, 2), 'x': (1, 1)},
        **options,
    )


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_sizes(variant, sizes):
    form = (variant, True, True)
    module = make_module(sizes.c, sizes.d, form)
    inputs = make_inputs(module, sizes)
    assert module(**inputs).shape == (sizes.n, sizes.c, *sizes.high)
    check_against_oracle(
        module,
        module,
        lambda state, x, guide: upsample(encode(state, guide, form), x, sizes.high),
        inputs,
        margins={'output': (2, 2), 'guide': (2, 2), 'x': (1, 1)},
        # Four values are normalized where the guide is 3 x 2.
        tolerance=1e-11,
    )


@pytest.mark.parametrize('dtype', MODULE_DTYPES, ids=str)
@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('high', [(8, 10), (9, 13), (5, 6)])
def test_encode_and_downsample_are_the_definition(form, high, dtype):
    module = make_module(6, 6, form, dtype)
    options = rounding(module, form, dtype)
    guide = {'guide': make_tensor(2, 6, *high, mean=0.3, dtype=dtype)}
    low = tuple(-(-side // 2) for side in high)
    assert module.encode(**guide).shape == (2, 4 if form[0] == 'hin' else 24, *low)
    assert module.downsample(**guide).shape == (2, 6, *low)
    margins = {'output': (1, 1), 'guide': (2, 2)}
    check_against_oracle(
        module,
        module.encode,
        lambda state, guide: encode(state, guide, form).flatten(1, 2),
        guide,
        margins=margins,
        **options,
    )
    check_against_oracle(
        module,
        module.downsample,
        lambda state, guide: downsample(encode(state, guide, form), guide),
        guide,
        margins=margins,
        **options,
    )


def test_holistic_index_downsamples_a_guide_of_another_width():
    form = ('hin', True, True)
    module = make_module(4, 6, form)
    guide = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expected = downsample(encode(module.state_dict(), guide, form), guide)
    torch.testing.assert_close(module.downsample(guide), expected)


def test_pooling_is_an_average():
    """A constant guide stays what it is, but for the zeros that make an odd size even."""
    out = make_module(6, 6, ('m2o', True, True)).downsample(torch.full((1, 6, 7, 8), 2.0).double())
    torch.testing.assert_close(out[:, :, :3], torch.full((1, 6, 3, 4), 2.0).double())
    assert ((out[:, :, 3] > 0.1) & (out[:, :, 3] < 1.9)).all()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('hidden_ratio', [1, 2, 3])
@pytest.mark.parametrize('variant', VARIANTS)
def test_hidden_ratio_is_the_definition(variant, hidden_ratio, training):
    form, sizes = (variant, True, True), SIZES[5]
    module = make_module(sizes.c, sizes.d, form, hidden_ratio=hidden_ratio).train(training)
    check_against_oracle(
        module,
        module,
        lambda state, x, guide: upsample(encode(state, guide, form, training), x, sizes.high),
        make_inputs(module, sizes),
        margins={'output': (2, 2), 'guide': (2, 2), 'x': (1, 1)},
    )
    module = make_module(6, 6, form, hidden_ratio=hidden_ratio).train(training)
    check_against_oracle(
        module,
        module.downsample,
        lambda state, guide: downsample(encode(state, guide, form, training), guide),
        {'guide': make_tensor(2, 6, 9, 13, mean=0.3, dtype=torch.float64)},
        margins={'output': (1, 1), 'guide': (2, 2)},
    )


@pytest.mark.parametrize(
    ('variant', 'hidden_ratio', 'shapes'),
    [
        ('hin', None, [(24, 12, 4, 4), (4, 24, 1, 1)]),
        ('hin', 1, [(12, 12, 4, 4), (4, 12, 1, 1)]),
        ('hin', 3, [(36, 12, 4, 4), (4, 36, 1, 1)]),
        ('m2o', None, [(8, 12, 4, 4), (8, 8, 1, 1)]),
        ('m2o', 2, [(16, 12, 4, 4), (8, 16, 1, 1)]),
        ('m2o', 3, [(24, 12, 4, 4), (8, 24, 1, 1)]),
        ('o2o', None, [(8, 1, 4, 4), (8, 1, 1, 1)]),
        ('o2o', 2, [(16, 1, 4, 4), (8, 2, 1, 1)]),
    ],
)
def test_hidden_width(variant, hidden_ratio, shapes):
    """It is over the guide's channels for the holistic index, and over the maps for the others."""
    module = IndexNet(8, 8 if variant == 'o2o' else 12, variant, hidden_ratio=hidden_ratio)
    state = module.state_dict()
    encoders = 1 if variant == 'hin' else 4
    assert {name.split('.')[1] for name in state} == {str(i) for i in range(encoders)}
    for i in range(encoders):
        first, second = (state[f'encoders.{i}.{layer}.weight'] for layer in (0, 3))
        assert [tuple(weight.shape) for weight in (first, second)] == shapes
        assert state[f'encoders.{i}.1.running_mean'].shape == (shapes[0][0],)


@pytest.mark.parametrize(('variant', 'ratio'), [('hin', 2), ('m2o', 1), ('o2o', 1)])
def test_default_hidden_ratio(variant, ratio):
    default, named = IndexNet(8, variant=variant), IndexNet(8, variant=variant, hidden_ratio=ratio)
    # Nothing is missing and nothing has another shape.
    named.load_state_dict(default.state_dict())
    x, guide = torch.randn(2, 8, 3, 4), torch.randn(2, 8, 6, 8)
    assert torch.equal(default.eval()(x, guide), named.eval()(x, guide))
    torch.manual_seed(0)
    default = IndexNet(8, variant=variant)
    torch.manual_seed(0)
    named = IndexNet(8, variant=variant, hidden_ratio=ratio)
    for name, value in default.state_dict().items():
        assert torch.equal(named.state_dict()[name], value), name


def test_depthwise_encoding_of_more_hidden_channels_sees_its_channel_alone():
    module = make_module(4, 4, ('o2o', True, True), hidden_ratio=3).eval()
    x, guide = torch.randn(1, 4, 3, 4).double(), torch.randn(1, 4, 6, 8).double()
    before = module(x, guide)
    guide[:, 2] += 1
    changed = (module(x, guide) != before).flatten(2).any(dim=(0, 2))
    assert changed.tolist() == [False, False, True, False]


def test_flops_count_the_hidden_channels():
    for ratio in (1, 2, 5):
        module = IndexNet(8, 12, variant='m2o', hidden_ratio=ratio)
        encode = 4 * (16 * 12 * 8 * ratio + 8 * ratio * 8)
        assert module.flops((3, 4), (6, 8)) == 12 * encode + 8 * 48


@pytest.mark.parametrize('variant', VARIANTS)
def test_paired_protocol(variant):
    for sizes in (SIZES[1], SIZES[5]._replace(high=(51, 31))):
        module = make_module(sizes.c, sizes.c, (variant, True, True)).eval()
        check_paired_protocol(module, *make_inputs(module, sizes).values())


def test_one_encoding_serves_both_directions():
    module = make_module(6, 6, ('hin', True, True))
    x, guide = torch.randn(2, 6, 4, 5).double(), torch.randn(2, 6, 8, 10).double()
    encoding = module.encode(guide)
    module.downsample(guide, encoding)
    module(x, guide, encoding)
    # There is one pass through the encoder.
    assert module.encoders[0][1].num_batches_tracked == 1


@pytest.mark.parametrize('variant', VARIANTS)
def test_batch_of_one(variant):
    module = make_module(11, 11, (variant, True, True)).eval()
    check_batch_of_one(module, *make_inputs(module, SIZES[1]).values())


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_layouts(variant, layout):
    module = make_module(6, 6, (variant, True, True))
    for high in ((10, 12), (9, 11), (15, 13)):
        check_layouts(module, (2, 6, 5, 6), (2, 6, *high), layout)


@pytest.mark.parametrize(
    'form', [('hin', True, True), ('m2o', False, True), ('o2o', True, False)], ids=str
)
def test_gradcheck(form):
    # Every parameter is a run of its own.
    channels = 2 if form[0] == 'hin' else 1
    module = make_module(channels, channels, form)
    if form[2]:
        keep_smooth(module)
    x, guide = torch.randn(1, channels, 2, 2).double(), torch.randn(1, channels, 3, 4).double()
    check_gradients_numerically(module, 'forward', x, guide)
    check_gradients_numerically(module, 'downsample', guide)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('guide_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(variant, guide_dtype):
    module = make_module(6, 6, (variant, True, True), torch.float32)
    x = make_tensor(2, 6, 5, 6, dtype=torch.bfloat16)
    guide = make_tensor(2, 6, 9, 12, dtype=guide_dtype)
    check_autocast(module, module, x, guide)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_the_dtype_of_x(variant, dtype):
    module = make_module(6, 6, (variant, True, True), torch.float32)
    x, guide = make_tensor(2, 6, 5, 6, dtype=dtype), make_tensor(2, 6, 9, 12)
    with torch.autocast('cpu', torch.bfloat16):
        assert module(x, guide).dtype == dtype


@pytest.mark.parametrize('variant', VARIANTS)
def test_on_the_meta_device(variant):
    module = IndexNet(6, variant=variant).to('meta')
    x, guide = (torch.empty(2, 6, *size, device='meta') for size in ((5, 6), (9, 12)))
    assert module(x, guide).shape == (2, 6, 9, 12)


@pytest.mark.parametrize(
    ('options', 'parameters'),
    [
        # The BatchNorms' come beside the published numbers.
        ({}, 32 * 16**2 + 8 * 16 + 4 * 16),
        ({'context': False}, 8 * 16**2 + 8 * 16 + 4 * 16),
        ({'nonlinear': False}, 16 * 4 * 16),
        ({'nonlinear': False, 'context': False}, 4 * 4 * 16),
        ({'guide_channels': 12}, 32 * 12**2 + 8 * 12 + 4 * 12),
        ({'variant': 'm2o'}, 68 * 16**2 + 8 * 16),
        ({'variant': 'm2o', 'nonlinear': False}, 64 * 16**2),
        ({'variant': 'm2o', 'nonlinear': False, 'context': False}, 16 * 16**2),
        ({'variant': 'm2o', 'guide_channels': 12}, 64 * 12 * 16 + 4 * 16**2 + 8 * 16),
        # Twice as wide a hidden layer is as large as two modules, as the matting papers count.
        ({'variant': 'm2o', 'hidden_ratio': 2}, 136 * 16**2 + 16 * 16),
        ({'hidden_ratio': 1}, 16 * 16**2 + 2 * 16 + 4 * 16),
        ({'guide_channels': 12, 'hidden_ratio': 3}, 48 * 12**2 + 6 * 12 + 12 * 12),
        ({'variant': 'o2o', 'hidden_ratio': 2}, 136 * 16 + 16 * 16),
        ({'variant': 'o2o'}, 68 * 16 + 8 * 16),
        ({'variant': 'o2o', 'nonlinear': False}, 64 * 16),
        ({'variant': 'o2o', 'nonlinear': False, 'context': False}, 16 * 16),
    ],
    ids=str,
)
def test_parameters(options, parameters):
    assert count(IndexNet(16, **options)) == parameters


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_convolutions_have_no_bias(form):
    module = make_module(6, 6, form)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == (1 if form[0] == 'hin' else 4) * (1 + form[2])
    assert all(layer.bias is None for layer in layers)


def test_is_registered_and_built():
    module = MODELS.build({'type': 'IndexNet', 'in_channels': 8, 'guide_channels': 12})
    assert type(module) is IndexNet
    assert module.encoders[0][0].weight.shape == (24, 12, 4, 4)
    for variant in VARIANTS:
        cfg = {'type': 'IndexNet', 'variant': variant, 'context': False, 'nonlinear': True}
        module = randomize(build_upsampler(cfg, in_channels=8, guide_channels=8)).eval()
        assert type(module) is IndexNet
        same = IndexNet(8, variant=variant, context=False).eval()
        same.load_state_dict(module.state_dict())
        x, guide = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 6, 8)
        assert module(x, guide).shape == (1, 8, 6, 8)
        assert torch.equal(module(x, guide), same(x, guide))


@pytest.mark.parametrize('variant', VARIANTS)
def test_init_weights(variant):
    module = IndexNet(8, variant=variant)
    module.init_weights()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.eq(1).all()
            assert layer.bias.eq(0).all()
        elif isinstance(layer, nn.Conv2d):
            assert layer.weight.isfinite().all()
            assert layer.weight.std() > 0
    init_cfg = {'type': 'Constant', 'layer': 'Conv2d', 'val': 0.5}
    module = IndexNet(8, variant=variant, init_cfg=init_cfg)
    module.init_weights()
    for branch in module.encoders:
        assert branch[0].weight.eq(0.5).all()
        assert branch[3].weight.eq(0.5).all()


@pytest.mark.parametrize('argument', ['in_channels', 'guide_channels'])
@pytest.mark.parametrize('wrong', [0, -1, 8.0, '8', True], ids=repr)
def test_bad_channels(argument, wrong):
    with refused(argument, error=ValueError if type(wrong) is int else TypeError):
        IndexNet(**({'in_channels': 8} | {argument: wrong}))


@pytest.mark.parametrize('wrong', ['nonsense', 'HIN', None, 3, ['hin']], ids=repr)
def test_unknown_variant(wrong):
    with refused('variant', *VARIANTS):
        IndexNet(8, variant=wrong)


@pytest.mark.parametrize('argument', ['context', 'nonlinear'])
@pytest.mark.parametrize('wrong', ['True', 1, None], ids=repr)
def test_bad_switch(argument, wrong):
    with refused(argument, str(wrong), error=TypeError):
        IndexNet(8, **{argument: wrong})


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('wrong', [0, -1, 2.0, '2', True], ids=repr)
def test_bad_hidden_ratio(variant, wrong):
    with refused('hidden_ratio', error=ValueError if type(wrong) is int else TypeError):
        IndexNet(8, variant=variant, hidden_ratio=wrong)


def test_channels_that_must_be_equal():
    with refused('guide_channels', '8', '12', error=ValueError):
        IndexNet(8, 12, variant='o2o')
    # It is no matter for upsampling with a full index, but for downsampling: it has 8 channels.
    module = IndexNet(8, 12, variant='m2o')
    assert module(torch.randn(2, 8, 3, 4), torch.randn(2, 12, 6, 8)).shape == (2, 8, 6, 8)
    with refused('8', '12', error=ValueError):
        module.downsample(torch.randn(2, 12, 6, 8))


def test_bad_features():
    for variant in VARIANTS:
        module = IndexNet(8, variant=variant)
        check_refuses_features(module)
        check_refuses_guides(module)
        check_refuses_encodings(module)


def test_no_hidden_channels_without_a_nonlinearity():
    with refused('hidden_ratio', 'nonlinear', error=ValueError):
        IndexNet(8, nonlinear=False, hidden_ratio=2)
