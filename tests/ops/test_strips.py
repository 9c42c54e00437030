"""How the PyTorch backend divides its work must not show in what it gives."""

import pytest
import torch
from testing_utils import (
    BORDERS,
    Sizes,
    affiliation_inputs,
    assembly_inputs,
    check_against_reference,
    forward_and_gradients,
    make_tensor,
)

from sapa_mm.ops import assemble, backend, local_similarity, point_affiliation, reference
from sapa_mm.ops.strips import geometry

pytestmark = pytest.mark.usefixtures('poisoned_memory')

# Three images of 7 x 11 cells, two strips wide, at a ratio that leaves some slots empty.
SIZES = Sizes(3, 6, 5, (7, 11), (17, 25))

#: Rows a strip may have, and the strips (images, rows of cells, columns of cells) with K = 3, where
#: images that lie above each other are two rows apart.
STRIPS = {
    3: [
        ((i, i + 1), y, x)
        for i in range(3)
        for x in ((0, 8), (8, 11))
        for y in ((0, 3), (3, 6), (6, 7))
    ],
    7: [((i, i + 1), (0, 7), x) for i in range(3) for x in ((0, 8), (8, 11))],
    16: [(i, (0, 7), x) for i in ((0, 2), (2, 3)) for x in ((0, 8), (8, 11))],
    25: [((0, 3), (0, 7), x) for x in ((0, 8), (8, 11))],
}


@pytest.fixture(params=STRIPS)
def rows(request, monkeypatch):
    """Rows of cells that a strip may have."""
    # 3 x 3 slots; 3 rows of 10 columns of weights are wider than any map.
    monkeypatch.setattr(geometry, 'CPU_STRIP_BYTES', request.param * 8 * 9 * 30 * 8)
    monkeypatch.setattr(geometry, 'DEVICE_STRIP_BYTES', request.param * 8 * 9 * 30 * 8)
    with backend('torch'):
        yield request.param


def test_strips(rows):
    query, key, _ = affiliation_inputs(SIZES, dtype=torch.float64)
    strips = geometry.Geometry(query, key, 3).strips(6)
    found = [((s.images.start, s.images.stop), (s.y0, s.y1), (s.x0, s.x1)) for s in strips]
    assert found == STRIPS[rows]


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('border', BORDERS)
def test_affiliation(rows, border, layout, device):
    inputs = affiliation_inputs(SIZES, dtype=torch.float64, layout=layout, device=device)
    check_against_reference(
        point_affiliation,
        reference.point_affiliation,
        inputs,
        ('query', 'key', 'value'),
        kernel_size=3,
        border=border,
    )


def test_similarity(rows, device):
    inputs = affiliation_inputs(SIZES, dtype=torch.float64, device=device)[:2]
    check_against_reference(
        local_similarity, reference.local_similarity, inputs, ('query', 'key'), kernel_size=3
    )


def test_assembly(rows, device):
    inputs = assembly_inputs(SIZES, 3, dtype=torch.float64, device=device)
    check_against_reference(
        assemble, reference.assemble, inputs, ('weights', 'value'), kernel_size=3
    )


def check_apart(function, inputs, **options):
    """What is not finite in the image between the two others stays there, in gradients too."""
    grad = make_tensor(SIZES.n, SIZES.c, *SIZES.high, dtype=torch.float64, device=inputs[0].device)
    expected = forward_and_gradients(function, inputs, grad, **options)
    spoilt = [tensor.clone() for tensor in inputs]
    for tensor in spoilt:
        tensor[1] = torch.inf
    for got, whole in zip(
        forward_and_gradients(function, spoilt, grad, **options), expected, strict=True
    ):
        assert torch.equal(got[[0, 2]], whole[[0, 2]])
        assert not got[1].isfinite().all()


@pytest.mark.parametrize('border', BORDERS)
def test_images_are_apart_in_affiliation(rows, border, device):
    inputs = affiliation_inputs(SIZES, dtype=torch.float64, device=device)
    check_apart(point_affiliation, inputs, kernel_size=3, border=border)


def test_images_are_apart_in_assembly(rows, device):
    inputs = assembly_inputs(SIZES, 3, dtype=torch.float64, device=device)
    check_apart(assemble, inputs, kernel_size=3)
