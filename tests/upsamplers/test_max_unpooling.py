import pytest
import torch
from mmengine.registry import MODELS
from testing_utils import DTYPES, LAYOUTS, SIZES, make_tensor
from torch.nn import functional as F
from upsampler_oracles import (
    blocks,
    check_autocast,
    check_batch_of_one,
    check_gradients_numerically,
    check_layouts,
    check_paired_protocol,
    check_refuses_encodings,
    check_refuses_features,
    check_refuses_guides,
    refused,
    shuffle,
    to_parent_grid,
)

from sapa_mm.upsamplers import MaxUnpooling, build_upsampler

pytestmark = pytest.mark.usefixtures('poisoned_memory')


def maxima(guide):
    """1 at the first maximum of every 2 x 2 block, row-major, 0 elsewhere."""
    height, width = guide.shape[2:]
    whole = F.pad(guide, (0, width % 2, 0, height % 2), value=-torch.inf)
    whole = blocks(whole)
    best = whole == whole.amax(dim=2, keepdim=True)
    first = best & (best.cumsum(dim=2) == 1)
    return shuffle(first.to(guide.dtype).flatten(1, 2), 2)[:, :, :height, :width]


def make_inputs(sizes, dtype=torch.float64):
    return (
        make_tensor(sizes.n, sizes.c, *sizes.low, dtype=dtype),
        make_tensor(sizes.n, sizes.c, *sizes.high, dtype=dtype),
    )


@pytest.mark.filterwarnings('ignore:max_unpooling2d_forward_out does not have a deterministic')
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('low', [(5, 8), (1, 1), (16, 3)])
def test_is_that_of_torch(low, dtype):
    """Where both sides are doubled."""
    x = make_tensor(2, 6, *low, dtype=dtype)
    guide = make_tensor(2, 6, 2 * low[0], 2 * low[1], dtype=dtype)
    pooled, indices = F.max_pool2d(guide, 2, return_indices=True)
    module = MaxUnpooling(6)
    out = module(x, guide)
    assert out.dtype == dtype
    assert torch.equal(out, F.max_unpool2d(x, indices, 2))
    assert torch.equal(module.downsample(guide), pooled)
    # It goes there and back again.
    assert torch.equal(module.downsample(guide, module.encode(guide)), pooled)
    assert torch.equal(F.max_pool2d(out.abs(), 2), x.abs())


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('offset', [0.0, -20.0])
def test_is_the_definition(sizes, dtype, offset):
    """Any ratio: the parent's value where the guide's block is largest; -20: all are negative."""
    x, guide = make_inputs(sizes, dtype)
    guide = guide + offset
    module = MaxUnpooling(sizes.c)
    out = module(x, guide)
    assert out.shape == (sizes.n, sizes.c, *sizes.high)
    assert out.dtype == dtype
    assert torch.equal(out, maxima(guide) * to_parent_grid(x, sizes.high))
    pooled = module.downsample(guide)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, F.max_pool2d(guide, 2, ceil_mode=True))


def test_the_first_of_equal_values_wins():
    x = torch.arange(1.0, 7.0).view(1, 1, 2, 3)
    expected = torch.zeros(1, 1, 4, 6)
    expected[:, :, ::2, ::2] = x
    assert torch.equal(MaxUnpooling(1)(x, torch.ones(1, 1, 4, 6)), expected)
    guide = torch.tensor([[0.0, 2.0, 1.0], [2.0, 2.0, 1.0], [5.0, 5.0, -3.0]])[None, None]
    out = MaxUnpooling(1)(x[:, :, :, :2], guide)
    assert torch.equal(out[0, 0], torch.tensor([[0.0, 1, 2], [0, 0, 0], [4, 0, 5]]))


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_gradients(sizes):
    x, guide = (tensor.requires_grad_() for tensor in make_inputs(sizes))
    module = MaxUnpooling(sizes.c)
    out = module(x, guide)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(to_parent_grid(x, sizes.high), x, grad * maxima(guide.detach()))
    actual, to_guide = torch.autograd.grad(
        out, (x, guide), grad, allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close(actual, expected[0])
    assert to_guide.eq(0).all()
    pooled, exact = module.downsample(guide), F.max_pool2d(guide, 2, ceil_mode=True)
    grad = torch.randn_like(pooled)
    actual, expected = (torch.autograd.grad(result, guide, grad)[0] for result in (pooled, exact))
    assert torch.equal(actual, expected)


def test_gradcheck():
    module = MaxUnpooling(2)
    x, guide = make_inputs(SIZES[-1]._replace(c=2))
    check_gradients_numerically(module, 'forward', x, guide)
    check_gradients_numerically(module, 'downsample', guide)


def test_paired_protocol():
    for sizes in (SIZES[1], SIZES[5], SIZES[9]._replace(high=(7, 5))):
        check_paired_protocol(MaxUnpooling(sizes.c), *make_inputs(sizes))


def test_batch_of_one():
    check_batch_of_one(MaxUnpooling(11), *make_inputs(SIZES[1]))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_layouts(layout):
    # An expanded guide is full of equal values.
    for high in ((10, 12), (9, 11), (15, 13)):
        check_layouts(MaxUnpooling(6), (2, 6, 5, 6), (2, 6, *high), layout)


@pytest.mark.parametrize('guide_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(guide_dtype):
    module = MaxUnpooling(6)
    x = make_tensor(2, 6, 5, 6, dtype=torch.bfloat16)
    guide = make_tensor(2, 6, 9, 12, dtype=guide_dtype)
    check_autocast(module, module, x, guide)


def test_is_registered_and_built():
    x, guide = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 6, 8)
    for module in (
        MODELS.build({'type': 'MaxUnpooling', 'in_channels': 8}),
        build_upsampler({'type': 'MaxUnpooling'}, in_channels=8, guide_channels=8),
    ):
        assert type(module) is MaxUnpooling
        module.init_weights()
        assert not module.state_dict()
        assert torch.equal(module(x, guide), maxima(guide) * to_parent_grid(x, (6, 8)))


@pytest.mark.parametrize('argument', ['in_channels', 'guide_channels'])
@pytest.mark.parametrize('wrong', [0, -1, 8.0, '8', True], ids=repr)
def test_bad_option(argument, wrong):
    with refused(argument, error=ValueError if type(wrong) is int else TypeError):
        MaxUnpooling(**({'in_channels': 8} | {argument: wrong}))


def test_channels_that_must_be_equal():
    with refused('guide_channels', '8', '12', error=ValueError):
        MaxUnpooling(8, 12)
    assert MaxUnpooling(8).guide_channels == 8


def test_bad_features():
    check_refuses_features(MaxUnpooling(8))


def test_bad_guide_of_the_downsampling():
    check_refuses_guides(MaxUnpooling(8))


def test_bad_encoding():
    module = MaxUnpooling(8)
    check_refuses_encodings(module)
    x, guide = torch.zeros(2, 8, 3, 4), torch.zeros(2, 8, 6, 8)
    with refused('encoding', 'int64', 'float32', error=TypeError):
        module(x, guide, torch.zeros(2, 8, 3, 4))


def test_only_values_are_moved():
    x = torch.tensor([[[[torch.inf, 1.0]]]])
    guide = torch.tensor([[[[0.0, 1.0, 3.0, 2.0], [2.0, 0.0, 0.0, 1.0]]]])
    expected = torch.tensor([[[[0.0, 0.0, 1.0, 0.0], [torch.inf, 0.0, 0.0, 0.0]]]])
    assert torch.equal(MaxUnpooling(1)(x, guide), expected)
