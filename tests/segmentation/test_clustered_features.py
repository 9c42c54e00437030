"""Features with assignments."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from mmseg.models import decode_heads
from mmseg.models.necks import FPN
from testing_clustering import COMMON, GRIDS, HEADS, make_features
from testing_hosts import assert_same_bits

from sapa_mm.segmentation import ClusteredFeatures
from sapa_mm.upsamplers import Assignment

#: These are the grids of strides 4 to 32.
GRIDS = GRIDS[1:]
CHANNELS = [8, 16, 32, 64]


def make_assignments(grids: Sequence[tuple[int, int]] = GRIDS) -> list[Assignment]:
    """One a step, fine to coarse, with random weights of a 3x3 window."""
    return [
        Assignment(torch.randn(2, 9, *high).softmax(1), low)
        for high, low in itertools.pairwise(grids)
    ]


def test_clustered_features_are_a_tuple():
    tensors = [torch.randn(2, 4, 3, 3), torch.randn(2, 8, 2, 2)]
    assignments = make_assignments()
    feats = ClusteredFeatures(iter(tensors), iter(assignments))
    assert isinstance(feats, tuple)
    assert len(feats) == 2
    first, last = feats
    assert first is tensors[0]
    assert last is feats[-1] is tensors[1]
    assert [feats[i] is tensors[i] for i in (0, 1)] == [True, True]
    assert isinstance(feats.assignments, tuple)
    assert all(a is b for a, b in zip(feats.assignments, assignments, strict=True))
    assert ClusteredFeatures(tensors).assignments == ()


def test_stock_heads_and_necks_take_them():
    feats = make_features(levels=3)
    plain = tuple(feats)
    for name, cfg in HEADS.items():
        head = getattr(decode_heads, name)(**COMMON, **cfg).eval()
        assert torch.equal(head(feats), head(plain))
    neck = FPN(CHANNELS, 8, 4)
    assert_same_bits(neck(feats), neck(plain))


@pytest.mark.parametrize('start', [1, 2, 3])
def test_decode_starts_from_any_level(start):
    feats = ClusteredFeatures([], make_assignments())
    value = torch.randn(2, 3, *GRIDS[start])
    expected = value
    for assignment in reversed(feats.assignments[:start]):
        expected = assignment.decode(expected)
    got = feats.decode(value)
    assert got.shape == (2, 3, *GRIDS[0])
    assert torch.equal(got, expected)


@pytest.mark.parametrize('start', [1, 2, 3])
def test_hard_decoding_follows_the_labels(start):
    feats = ClusteredFeatures([], make_assignments())
    value = torch.randn(2, 3, *GRIDS[start])
    expected = value
    for assignment in reversed(feats.assignments[:start]):
        labels = assignment.labels()
        index = labels.flatten(1)[:, None].expand(-1, 3, -1)
        expected = expected.flatten(2).gather(2, index).unflatten(2, labels.shape[1:])
    got = feats.decode(value, hard=True)
    assert torch.equal(got, expected)
    assert (got - feats.decode(value)).abs().max() > 0.1


def test_without_assignments_decode_gives_the_value():
    value = torch.randn(2, 3, 4, 5)
    assert ClusteredFeatures([value]).decode(value) is value
    assert ClusteredFeatures([value]).decode(value, hard=True) is value


@pytest.mark.parametrize('grid', [(3, 5), (4, 3), (10, 13), (34, 50), (1, 1)])
def test_decode_of_a_grid_that_no_assignment_has(grid):
    feats = ClusteredFeatures([], make_assignments())
    with pytest.raises(ValueError, match=r'value.*{}\D+{}'.format(*grid)):
        feats.decode(torch.randn(2, 3, *grid))


def test_between():
    feats = ClusteredFeatures([], make_assignments())
    for i, assignment in enumerate(feats.assignments):
        assert feats.between(GRIDS[i + 1], GRIDS[i]) is assignment
        # The shapes of two maps come in this type.
        sizes = (torch.Size(GRIDS[i + 1]), torch.Size(GRIDS[i]))
        assert feats.between(*sizes) is assignment
        assert feats.between(GRIDS[i], GRIDS[i + 1]) is None
        assert feats.between(GRIDS[i], GRIDS[i]) is None
    assert feats.between(GRIDS[2], GRIDS[0]) is None
    assert feats.between((3, 4), (6, 8)) is None
    assert ClusteredFeatures([]).between(GRIDS[1], GRIDS[0]) is None
