import math

import pytest
import torch
import torch.nn.functional as F
from testing_utils import (
    BORDERS,
    LAYOUTS,
    NORMALIZATIONS,
    SIZES,
    affiliation_inputs,
    assert_close_to_reference,
    make_tensor,
)

from sapa_mm.ops.reference import (
    NORMALIZATION_EPS,
    assemble,
    local_similarity,
    point_affiliation,
)

LN2, LN3 = math.log(2), math.log(3)


def window_in_python(feature, n, i, j, guide_size, kernel_size, border):
    """Yield every window position of output pixel (i, j) as (channels, inside)."""
    _, channels, height, width = feature.shape
    radius = kernel_size // 2
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            y = i * height // guide_size[0] + dy
            x = j * width // guide_size[1] + dx
            inside = 0 <= y < height and 0 <= x < width
            if inside or border == 'replicate':
                y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                yield feature[n, :, y, x].tolist(), inside
            else:
                yield [0.0] * channels, inside


def affiliation_in_python(query, key, value, kernel_size, normalization, temperature, border):
    """The definition once more, one number at a time."""
    positive = {
        'softmax': math.exp,
        'sigmoid': lambda s: 1 / (1 + math.exp(-s)),
        'relu': lambda s: max(s, 0.0),
        'softplus': lambda s: math.log(1 + math.exp(s)),
        'none': lambda s: s,
    }[normalization]
    guide_size = query.shape[2:]
    out = torch.zeros(query.shape[0], value.shape[1], *guide_size, dtype=torch.float64)
    for n in range(query.shape[0]):
        for i in range(guide_size[0]):
            for j in range(guide_size[1]):
                pixel = query[n, :, i, j].tolist()
                weights = []
                for keys, inside in window_in_python(key, n, i, j, guide_size, kernel_size, border):
                    score = sum(a * b for a, b in zip(pixel, keys, strict=True)) / temperature
                    weights.append(positive(score) if inside or border != 'mask' else 0.0)
                total = {'softmax': sum(weights), 'none': 1.0}.get(
                    normalization, sum(weights) + 1e-6
                )
                values = window_in_python(value, n, i, j, guide_size, kernel_size, border)
                for weight, (numbers, _) in zip(weights, values, strict=True):
                    out[n, :, i, j] += weight / total * torch.tensor(numbers, dtype=torch.float64)
    return out


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize(
    ('low', 'high', 'kernel_size'),
    [((4, 3), (7, 5), 3), ((3, 2), (6, 4), 5), ((5, 4), (5, 6), 1)],
)
def test_point_affiliation_is_the_definition(low, high, kernel_size, border, normalization):
    query = make_tensor(2, 3, *high, dtype=torch.float64)
    key = make_tensor(2, 3, *low, dtype=torch.float64)
    value = make_tensor(2, 2, *low, dtype=torch.float64)
    expected = affiliation_in_python(query, key, value, kernel_size, normalization, 0.7, border)
    out = point_affiliation(
        query,
        key,
        value,
        kernel_size=kernel_size,
        normalization=normalization,
        temperature=0.7,
        border=border,
    )
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ('normalization', 'border', 'expected'),
    [
        # Every 3x3 window sees the whole 2x2 map; 5 positions lie outside.
        ('softmax', 'zero', 18 / 12),
        ('softmax', 'mask', 18 / 7),
        ('none', 'zero', 2 * LN2 + 3 * LN3),
        ('none', 'mask', 2 * LN2 + 3 * LN3),
        ('relu', 'zero', (2 * LN2 + 3 * LN3) / (LN2 + LN3 + NORMALIZATION_EPS)),
        # sigmoid(ln a) = a / (1 + a)
        ('sigmoid', 'zero', (1 / 2 + 4 / 3 + 9 / 4 + 2) / (29 / 12 + 5 / 2 + NORMALIZATION_EPS)),
        ('sigmoid', 'mask', (1 / 2 + 4 / 3 + 9 / 4 + 2) / (29 / 12 + NORMALIZATION_EPS)),
        # softplus(ln a) = ln(1 + a)
        (
            'softplus',
            'mask',
            (LN2 + 2 * LN3 + 3 * math.log(4) + 4 * LN2)
            / (LN2 + LN3 + math.log(4) + LN2 + NORMALIZATION_EPS),
        ),
    ],
)
def test_by_hand(normalization, border, expected):
    key = torch.tensor([[0, LN2], [LN3, 0]], dtype=torch.float64)[None, None]
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)[None, None]
    query = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    out = point_affiliation(
        query, key, value, kernel_size=3, normalization=normalization, border=border
    )
    torch.testing.assert_close(out, torch.full_like(out, expected))


def test_replicated_edge_by_hand():
    key = torch.tensor([[0, LN2], [LN3, 0]], dtype=torch.float64)[None, None]
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)[None, None]
    query = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    out = point_affiliation(query, key, value, kernel_size=3, border='replicate')
    # The corner counts the near pixel four times, its neighbours twice, the far one once.
    assert out[0, 0, 0, 0].item() == pytest.approx((4 + 8 + 18 + 4) / (4 + 4 + 6 + 1))
    assert out[0, 0, 0, 1].item() == pytest.approx((2 + 16 + 9 + 8) / (2 + 8 + 3 + 2))


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_windows_are_those_of_unfold(kernel_size):
    query = make_tensor(2, 4, 7, 9, dtype=torch.float64)
    key = make_tensor(2, 4, 7, 9, dtype=torch.float64)
    windows = F.unfold(key, kernel_size, padding=kernel_size // 2)
    windows = windows.reshape(2, 4, kernel_size**2, 7, 9)
    scores = local_similarity(query, key, kernel_size=kernel_size, temperature=2.0)
    torch.testing.assert_close(scores, torch.einsum('nchw,ncphw->nphw', query, windows) / 2)
    out = assemble(scores, key, kernel_size=kernel_size)
    torch.testing.assert_close(out, torch.einsum('nphw,ncphw->nchw', scores, windows))


@pytest.mark.parametrize(('low', 'high'), [(17, 33), (14, 46), (8, 9), (5, 20)])
def test_parents_are_integer(low, high):
    value = torch.arange(low, dtype=torch.float64)[None, None, :, None]
    out = assemble(torch.ones(1, 1, high, 1, dtype=torch.float64), value, kernel_size=1)
    assert out.flatten().tolist() == [i * low // high for i in range(high)]


@pytest.mark.parametrize('border', ['zero', 'mask'])
def test_fused_is_the_composition(border):
    query, key, value = affiliation_inputs(SIZES[5], dtype=torch.float64)
    fused = point_affiliation(query, key, value, temperature=0.5, border=border)
    scores = local_similarity(query, key, temperature=0.5)
    if border == 'mask':
        ones = torch.ones_like(key[:, :1])
        inside = local_similarity(torch.ones_like(query[:, :1]), ones)
        scores = scores.masked_fill(inside == 0, -torch.inf)
    torch.testing.assert_close(fused, assemble(scores.softmax(1), value))


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('border', BORDERS)
def test_gradients(normalization, border):
    query = make_tensor(1, 2, 3, 4, dtype=torch.float64).requires_grad_()
    key = make_tensor(1, 2, 2, 3, dtype=torch.float64).requires_grad_()
    value = make_tensor(1, 2, 2, 3, dtype=torch.float64).requires_grad_()

    def function(*inputs):
        return point_affiliation(*inputs, kernel_size=3, normalization=normalization, border=border)

    assert torch.autograd.gradcheck(function, (query, key, value))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_the_dtype_of_its_inputs(dtype):
    query, key, value = affiliation_inputs(SIZES[0], dtype=dtype)
    scores = local_similarity(query, key)
    assert point_affiliation(query, key, value).dtype == dtype
    assert (scores.dtype, assemble(scores, value).dtype) == (dtype, dtype)


@pytest.mark.parametrize(
    ('argument', 'choices'),
    [('normalization', 'softmax.*sigmoid.*relu.*softplus.*none'), ('border', 'zero.*mask.*repl')],
)
def test_unknown_choice(argument, choices):
    inputs = affiliation_inputs(SIZES[0])
    with pytest.raises(ValueError, match=rf"{argument}.*{choices}.*'nonsense'"):
        point_affiliation(*inputs, **{argument: 'nonsense'})


def test_comparison_sees_the_border():
    """An error below the global tolerance is too large for the border row it sits in."""
    expected = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    expected[:, :, 1:] = 1e6
    actual = expected.float()
    actual[:, :, 0, 3] += 0.5
    assert_close_to_reference(actual, expected)
    with pytest.raises(AssertionError, match='top rows'):
        assert_close_to_reference(actual, expected, margin=(1, 1))
    actual[:, :, 0, 3] = torch.nan
    with pytest.raises(AssertionError, match='not finite'):
        assert_close_to_reference(actual, expected)


def test_unwritten_memory_is_nan(poisoned_memory):
    assert torch.empty(100).isnan().all()
    assert torch.empty_like(make_tensor(1, 2, 3, 4, layout='channels_last')).isnan().all()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_are_what_they_say(layout):
    tensor = make_tensor(2, 3, 4, 5, layout=layout)
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.isfinite().all()
    assert tensor.is_contiguous() == (layout == 'contiguous')
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    assert channels_last == (layout == 'channels_last')
    assert (0 in tensor.stride()) == (layout == 'expanded')
