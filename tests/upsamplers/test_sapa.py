import pytest
import torch
from mmengine.registry import MODELS
from testing_utils import BORDERS, NORMALIZATIONS, assert_close_to_reference
from torch import nn
from upsampler_oracles import BAD_SHAPES, refused

from sapa_mm.ops import reference
from sapa_mm.upsamplers import SAPA, build_upsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')

SIMILARITIES = ('inner', 'bilinear', 'plain', 'gated')

#: A form of the operator is similarity, self_input and self_projection; these are all.
FORMS = [
    ('inner', 'normalized', 'separate'),
    ('bilinear', 'normalized', 'separate'),
    *(
        (similarity, self_input, self_projection)
        for similarity in ('plain', 'gated')
        for self_input in ('normalized', 'raw')
        for self_projection in ('separate', 'key', 'query')
    ),
]


def make_inputs(x_channels=6, guide_channels=6, *, high=(13, 11), dtype=torch.float64):
    # Neither is centred or of unit size, so that a missing normalization shows.
    x = 1.5 * torch.randn(2, x_channels, 7, 5, dtype=torch.float64) + 0.5
    guide = 0.7 * torch.randn(2, guide_channels, *high, dtype=torch.float64) - 0.3
    return x.to(dtype), guide.to(dtype)


def make_module(*args, **kwargs):
    """A module with random parameters, biases and gates included, all of unit size."""
    module = SAPA(*args, **kwargs)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.double()


def layer_norm(tensor, weight=None, bias=None):
    """LayerNorm over the channels of (N, C, H, W), written out."""
    centred = tensor - tensor.mean(dim=1, keepdim=True)
    out = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    if weight is not None:
        out = out * weight[:, None, None] + bias[:, None, None]
    return out


def linear(tensor, weight, bias=None):
    """A 1x1 projection of (N, C, H, W)."""
    out = torch.einsum('dc,nchw->ndhw', weight, tensor)
    return out if bias is None else out + bias[:, None, None]


def to_parent_grid(tensor, size):
    """Every output pixel's parent, in integer arithmetic."""
    rows = [i * tensor.shape[2] // size[0] for i in range(size[0])]
    cols = [j * tensor.shape[3] // size[1] for j in range(size[1])]
    return tensor[:, :, rows][:, :, :, cols]


def expected_output(module, x, guide, similarity, self_input='normalized', projection='separate'):
    """The table of similarities, computed at high resolution from the module's parameters."""
    state = module.state_dict()
    size = guide.shape[2:]
    normed_x = layer_norm(x, state.get('norm_x.weight'), state.get('norm_x.bias'))
    normed_guide = layer_norm(guide, state.get('norm_guide.weight'), state.get('norm_guide.bias'))
    if similarity == 'inner':
        query, key = normed_guide, normed_x
    else:
        key = linear(normed_x, state['key_proj.weight'], state.get('key_proj.bias'))
        query = linear(normed_guide, state['query_proj.weight'], state.get('query_proj.bias'))
    if similarity in ('plain', 'gated'):
        name = {'separate': 'self_proj', 'key': 'key_proj', 'query': 'query_proj'}[projection]
        own = to_parent_grid({'normalized': normed_x, 'raw': x}[self_input], size)
        bias = state.get(f'{name}.bias') if similarity == 'gated' else None
        own = linear(own, state[f'{name}.weight'], bias)
        if similarity == 'plain':
            query = query + own
        else:
            gate = linear(normed_x, state['gate_proj.weight'], state.get('gate_proj.bias'))
            gate = to_parent_grid(gate.sigmoid(), size)
            query = gate * query + (1 - gate) * own
    return reference.point_affiliation(
        query,
        key,
        x,
        kernel_size=module.kernel_size,
        normalization=module.normalization,
        temperature=module.temperature,
        border=module.border,
    )


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(('similarity', 'self_input', 'projection'), FORMS)
@pytest.mark.parametrize('high', [(13, 11), (14, 10), (7, 5), (21, 20)])
def test_is_the_table(similarity, self_input, projection, high):
    module = make_module(
        6,
        embed_dims=4,
        similarity=similarity,
        self_input=self_input,
        self_projection=projection,
        kernel_size=3,
    )
    x, guide = make_inputs(high=high)
    out = module(x, guide)
    assert out.shape == (2, 6, *high)
    expected = expected_output(module, x, guide, similarity, self_input, projection)
    assert_close_to_reference(out, expected, margin=(4, 4), tolerance=1e-11)


@pytest.mark.parametrize('similarity', ['bilinear', 'plain', 'gated'])
@pytest.mark.parametrize(
    'options', [{}, {'bias': False}, {'norm_affine': False}, {'norm_affine': True}], ids=str
)
def test_guide_of_another_width(similarity, options):
    module = make_module(6, 9, similarity=similarity, embed_dims=4, **options)
    x, guide = make_inputs(6, 9)
    expected = expected_output(module, x, guide, similarity)
    assert_close_to_reference(module(x, guide), expected, margin=(4, 4), tolerance=1e-11)


@pytest.mark.parametrize(
    'options',
    [
        *({'normalization': name} for name in NORMALIZATIONS),
        *({'border': name} for name in BORDERS),
        {'temperature': 0.3},
        {'kernel_size': 1},
        {'kernel_size': 7},
    ],
    ids=str,
)
def test_options_reach_the_op(options):
    module = make_module(6, embed_dims=4, **options)
    x, guide = make_inputs()
    for name, value in options.items():
        assert getattr(module, name) == value
    expected = expected_output(module, x, guide, 'bilinear')
    # A wrong option must show: the default gives something else.
    default = SAPA(6, embed_dims=4).double()
    default.load_state_dict(module.state_dict())
    is_default = next(iter(options.items())) in {('normalization', 'softmax'), ('border', 'zero')}
    assert torch.allclose(default(x, guide), expected) == is_default
    assert_close_to_reference(module(x, guide), expected, margin=(6, 6), tolerance=1e-11)


def test_inner_with_an_affine_norm():
    module = make_module(6, similarity='inner', norm_affine=True)
    x, guide = make_inputs()
    expected = expected_output(module, x, guide, 'inner')
    assert_close_to_reference(module(x, guide), expected, margin=(4, 4), tolerance=1e-11)


def test_value_is_the_raw_input():
    """With weights that sum to 1 a constant map stays what it is, whatever the norm does to it."""
    x = torch.full((1, 6, 7, 5), 3.5)
    out = SAPA(6, embed_dims=4, border='mask')(x, torch.randn(1, 6, 14, 10))
    torch.testing.assert_close(out, torch.full((1, 6, 14, 10), 3.5))


@pytest.mark.parametrize(
    ('options', 'parameters'),
    [
        ({'similarity': 'inner'}, 0),
        ({'similarity': 'bilinear'}, 17_472),
        ({'similarity': 'plain'}, 25_664),
        ({'similarity': 'plain', 'self_projection': 'key'}, 17_472),
        ({'similarity': 'gated'}, 25_953),
        ({'similarity': 'gated', 'self_projection': 'key'}, 17_729),
        ({'similarity': 'gated', 'self_projection': 'query'}, 17_729),
        (
            # 2 C d + C
            {
                'similarity': 'gated',
                'self_projection': 'key',
                'bias': False,
                'norm_affine': False,
            },
            16_640,
        ),
        ({'similarity': 'bilinear', 'norm_affine': False}, 16_448),
        ({'similarity': 'bilinear', 'bias': False}, 17_408),
        ({'similarity': 'inner', 'norm_affine': True}, 1_024),
        ({'similarity': 'bilinear', 'embed_dims': 64}, 33_920),
    ],
    ids=str,
)
def test_parameters(options, parameters):
    assert count(SAPA(256, **options)) == parameters


@pytest.mark.parametrize(('steps', 'millions'), [(6, 0.1048), (3, 0.0524), (1, 0.0175)])
def test_parameters_the_paper_reports(steps, millions):
    assert round(steps * count(SAPA(256, similarity='bilinear')) / 1e6, 4) == millions


NORMS = {'norm_x.weight', 'norm_x.bias', 'norm_guide.weight', 'norm_guide.bias'}
PROJECTIONS = {'key_proj.weight', 'key_proj.bias', 'query_proj.weight', 'query_proj.bias'}
GATE = {'gate_proj.weight', 'gate_proj.bias'}


@pytest.mark.parametrize(
    ('options', 'keys'),
    [
        ({'similarity': 'inner'}, set()),
        ({'similarity': 'bilinear'}, NORMS | PROJECTIONS),
        ({'similarity': 'bilinear', 'norm_affine': False}, PROJECTIONS),
        ({'similarity': 'plain'}, NORMS | PROJECTIONS | {'self_proj.weight'}),
        ({'similarity': 'plain', 'self_projection': 'query'}, NORMS | PROJECTIONS),
        (
            {'similarity': 'gated'},
            NORMS | PROJECTIONS | GATE | {'self_proj.weight', 'self_proj.bias'},
        ),
        ({'similarity': 'gated', 'self_projection': 'key'}, NORMS | PROJECTIONS | GATE),
        (
            {'similarity': 'gated', 'bias': False, 'norm_affine': False},
            {'key_proj.weight', 'query_proj.weight', 'self_proj.weight', 'gate_proj.weight'},
        ),
    ],
    # They are sorted, as a set prints in another order in every process.
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_state_dict_keys(options, keys):
    assert set(SAPA(8, **options).state_dict()) == keys


def test_shapes_of_the_parameters():
    module = SAPA(8, 12, similarity='gated', embed_dims=4)
    assert module.key_proj.weight.shape == (4, 8)
    assert module.query_proj.weight.shape == (4, 12)
    assert module.self_proj.weight.shape == (4, 8)
    assert module.gate_proj.weight.shape == (1, 8)
    assert (module.norm_x.weight.shape, module.norm_guide.weight.shape) == ((8,), (12,))
    for name in ('key_proj', 'query_proj', 'self_proj', 'gate_proj'):
        assert isinstance(getattr(module, name), nn.Linear)
    for norm in (module.norm_x, module.norm_guide):
        assert isinstance(norm, nn.LayerNorm)
        assert norm.eps == 1e-5


@pytest.mark.parametrize('initialise', [False, True])
def test_initial_parameters(initialise):
    module = SAPA(256, similarity='gated', embed_dims=64)
    if initialise:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(3.0)
        module.init_weights()
    for name in ('key_proj', 'query_proj', 'self_proj', 'gate_proj'):
        layer = getattr(module, name)
        # The bounds are six standard errors; Linear's own default has .036 and a uniform law.
        size = layer.weight.numel()
        assert abs(layer.weight.mean()) < 6 * 0.02 / size**0.5
        assert abs(layer.weight.std() / 0.02 - 1) < 6 / (2 * size) ** 0.5
        assert layer.bias.eq(0).all()
    weights = module.key_proj.weight
    assert (weights.abs() < 0.02).float().mean().item() == pytest.approx(0.683, abs=0.03)
    for norm in (module.norm_x, module.norm_guide):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()


def test_init_cfg_of_the_user():
    module = SAPA(8, init_cfg={'type': 'Constant', 'layer': 'Linear', 'val': 0.5, 'bias': 0.25})
    module.init_weights()
    assert module.key_proj.weight.eq(0.5).all()
    assert module.query_proj.bias.eq(0.25).all()


@pytest.mark.parametrize(('similarity', 'self_input', 'projection'), FORMS)
def test_gradients_reach_everything(similarity, self_input, projection):
    module = make_module(
        6, embed_dims=4, similarity=similarity, self_input=self_input, self_projection=projection
    )
    x, guide = (tensor.requires_grad_() for tensor in make_inputs())
    out = module(x, guide)
    parameters = dict(module.named_parameters()) | {'x': x, 'guide': guide}
    grad = torch.randn_like(out)
    actual = torch.autograd.grad(out, list(parameters.values()), grad)
    state = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    stand_in = nn.Module()
    stand_in.state_dict = lambda: state
    for name in ('kernel_size', 'normalization', 'temperature', 'border'):
        setattr(stand_in, name, getattr(module, name))
    expected = expected_output(
        stand_in, state['x'], state['guide'], similarity, self_input, projection
    )
    expected = torch.autograd.grad(expected, list(state.values()), grad)
    for name, got, exact in zip(parameters, actual, expected, strict=True):
        assert got.abs().max() > 0, name
        torch.testing.assert_close(
            got, exact, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f'{n}: {m}'
        )


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(similarity, dtype):
    module = make_module(6, similarity=similarity, embed_dims=4).to(dtype)
    x, guide = make_inputs(dtype=dtype)
    out = module(x, guide)
    assert out.dtype == dtype
    expected = expected_output(module.double(), x.double(), guide.double(), similarity)
    assert_close_to_reference(out, expected)


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('guide_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(similarity, guide_dtype):
    module = make_module(6, similarity=similarity, embed_dims=4).float()
    x, guide = make_inputs(dtype=torch.float32)
    guide = guide.to(guide_dtype)
    leaves = {'x': x, 'guide': guide} | dict(module.named_parameters())
    with torch.autocast('cpu', torch.bfloat16):
        out = module(x.requires_grad_(), guide.requires_grad_())
    assert out.dtype == torch.bfloat16
    for name, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves.values()), strict=True):
        assert grad.dtype == leaves[name].dtype
        assert grad.isfinite().all(), name
    expected = expected_output(module.double(), x.double(), guide.double(), similarity)
    assert_close_to_reference(out, expected)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_channels_last(similarity):
    module = make_module(6, similarity=similarity, embed_dims=4)
    x, guide = make_inputs()
    out = module(
        x.contiguous(memory_format=torch.channels_last),
        guide.contiguous(memory_format=torch.channels_last),
    )
    torch.testing.assert_close(out, module(x, guide))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert module(x, guide).is_contiguous()


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_compile(similarity):
    torch._dynamo.reset()
    module = make_module(6, similarity=similarity, embed_dims=4)
    compiled = torch.compile(module, backend='aot_eager', fullgraph=True, dynamic=True)
    for high in ((13, 11), (14, 10)):
        x, guide = make_inputs(high=high)
        torch.testing.assert_close(compiled(x, guide), module(x, guide))


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_build_upsampler(similarity):
    cfg = {'type': 'SAPA', 'similarity': similarity, 'kernel_size': 3, 'embed_dims': 4}
    module = build_upsampler(cfg, in_channels=6, guide_channels=6)
    assert type(module) is SAPA
    assert cfg == {'type': 'SAPA', 'similarity': similarity, 'kernel_size': 3, 'embed_dims': 4}
    same = SAPA(6, 6, similarity=similarity, kernel_size=3, embed_dims=4)
    same.load_state_dict(module.state_dict())
    x, guide = make_inputs(dtype=torch.float32)
    assert module(x, guide).equal(same(x, guide))


def test_is_registered():
    module = MODELS.build({'type': 'SAPA', 'in_channels': 8, 'guide_channels': 12})
    assert type(module) is SAPA
    assert module(torch.randn(1, 8, 3, 4), torch.randn(1, 12, 6, 8)).shape == (1, 8, 6, 8)


@pytest.mark.parametrize(
    ('argument', 'choices'),
    [
        ('similarity', SIMILARITIES),
        ('normalization', NORMALIZATIONS),
        ('border', BORDERS),
        ('self_input', ('normalized', 'raw')),
        ('self_projection', ('separate', 'key', 'query')),
    ],
)
@pytest.mark.parametrize('wrong', ['nonsense', 'None', None])
def test_unknown_choice(argument, choices, wrong):
    with refused(argument, *choices, str(wrong)):
        SAPA(8, **({'similarity': 'gated'} | {argument: wrong}))


@pytest.mark.parametrize(
    ('options', 'argument'),
    [
        ({'kernel_size': 4}, 'kernel_size'),
        ({'kernel_size': 0}, 'kernel_size'),
        ({'kernel_size': -3}, 'kernel_size'),
        ({'kernel_size': 3.0}, 'kernel_size'),
        ({'kernel_size': True}, 'kernel_size'),
        ({'temperature': 0}, 'temperature'),
        ({'temperature': -1.0}, 'temperature'),
        ({'temperature': 'warm'}, 'temperature'),
        ({'embed_dims': 0}, 'embed_dims'),
        ({'embed_dims': 3.5}, 'embed_dims'),
        ({'in_channels': 0}, 'in_channels'),
        ({'in_channels': '8'}, 'in_channels'),
        ({'bias': 'no'}, 'bias'),
        ({'norm_affine': 1}, 'norm_affine'),
        ({'guide_channels': -2}, 'guide_channels'),
    ],
    ids=str,
)
def test_bad_option(options, argument):
    with refused(argument):
        SAPA(**({'in_channels': 8} | options))


def test_channels_that_must_be_equal():
    with refused('guide_channels', '8', '12', error=ValueError):
        SAPA(8, 12, similarity='inner')
    for similarity in ('plain', 'gated'):
        with refused('self_projection', '8', '12', error=ValueError):
            SAPA(8, 12, similarity=similarity, self_projection='query')
    # and nowhere else
    SAPA(8, 12, similarity='gated', self_projection='key')


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize(
    ('x', 'guide', 'named'),
    [
        *BAD_SHAPES,
        ((0, 8, 3, 4), (0, 8, 6, 8), ('x|guide',)),
    ],
    ids=str,
)
def test_bad_input(similarity, x, guide, named):
    module = SAPA(8, similarity=similarity)
    pattern = ''.join(rf'(?=.*\b({name})\b)' for name in named)
    with pytest.raises(ValueError, match=rf'(?s){pattern}'):
        module(torch.zeros(x), torch.zeros(guide))


@pytest.mark.parametrize('argument', ['x', 'guide'])
def test_input_that_is_no_tensor(argument):
    inputs = {'x': torch.zeros(2, 8, 3, 4), 'guide': torch.zeros(2, 8, 6, 8)} | {argument: [1.0]}
    with refused(argument, 'list', error=TypeError):
        SAPA(8)(**inputs)


def test_input_of_another_dtype():
    with refused('guide'):
        SAPA(8)(torch.zeros(2, 8, 3, 4), torch.zeros(2, 8, 6, 8, dtype=torch.float64))
