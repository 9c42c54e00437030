"""The product of filters with overlapping tiles, against a loop over the tiles."""

import pytest
import torch
from testing_utils import LAYOUTS, make_tensor
from torch.nn import functional as F

from sapa_mm.ops.tiles import STEP, tile_product

#: Of a map, its filters (M, P) and rows before a tile; odd, of one tile, and reaching two further.
CASES = [
    ((2, 3, 16, 24), (5, 12), 2),
    ((1, 2, 17, 9), (4, 10), 1),
    ((2, 1, 3, 20), (2, 8), 0),
    ((1, 4, 11, 13), (1, 26), 9),
]


def expected(x, filters, before):
    extent = filters.shape[-1]
    tiles = [-(-side // STEP) for side in x.shape[2:]]
    x = F.pad(x, (before, 2 * extent, before, 2 * extent))
    rows = []
    for y in range(0, tiles[0] * STEP, STEP):
        for z in range(0, tiles[1] * STEP, STEP):
            window = x[:, :, y : y + extent, z : z + extent]
            rows.append(torch.einsum('nmij,ncij->mnc', filters, window))
    return torch.stack(rows, 3).unflatten(3, tiles)


def make(shape, filters, layout='contiguous', dtype=torch.float64):
    m, extent = filters
    x = make_tensor(*shape, dtype=dtype, layout=layout)
    return x, make_tensor(shape[0], m, extent, extent, dtype=dtype)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('shape', 'filters', 'before'), CASES, ids=str)
def test_is_the_definition(shape, filters, before, layout):
    results = []
    x, filters = make(shape, filters, layout)
    for function in (tile_product, expected):
        leaves = [x.detach().requires_grad_(), filters.detach().requires_grad_()]
        out = function(*leaves, before)
        # Not the same everywhere, so that tiles that changed places show.
        grad = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for got, correct in zip(*results, strict=True):
        torch.testing.assert_close(got, correct)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_gradients_of_both_orders(layout):
    x, filters = make((1, 2, 9, 3), (2, 10), layout)
    x, filters = x.requires_grad_(), (0.1 * filters[:, :, :, :10]).requires_grad_()

    def function(x, filters):
        return tile_product(x, filters, 1)

    assert torch.autograd.gradcheck(function, (x, filters), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, filters), fast_mode=True)


@pytest.mark.parametrize('wanted', [(True, False), (False, True)])
def test_gradients_that_are_not_wanted(wanted):
    leaves = [
        leaf.requires_grad_(want)
        for leaf, want in zip(make((2, 3, 16, 9), (2, 12)), wanted, strict=True)
    ]
    tile_product(*leaves, 2).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == list(wanted)


def test_nothing_but_the_inputs_is_saved():
    x, filters = (leaf.requires_grad_() for leaf in make((2, 3, 16, 9), (2, 12)))
    saved = []

    def keep(tensor):
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tile_product(x, filters, 2)
    assert sorted(saved) == sorted([x.data_ptr(), filters.data_ptr()])


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_compiled(layout):
    leaves = [leaf.requires_grad_() for leaf in make((2, 3, 16, 9), (2, 12), layout)]
    torch._dynamo.reset()
    compiled = torch.compile(tile_product, fullgraph=True, backend='aot_eager', dynamic=False)
    results = []
    for function in (compiled, tile_product):
        out = function(*leaves, 2)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for got, correct in zip(*results, strict=True):
        torch.testing.assert_close(got, correct)
