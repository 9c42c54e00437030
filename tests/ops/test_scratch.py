"""Scratch memory of the strips: nobody overwrites what somebody else still reads."""

import pytest
import torch

from sapa_mm.ops.strips.geometry import Geometry
from sapa_mm.ops.strips.scratch import Scratch
from sapa_mm.ops.strips.transfer import load_pixels


@pytest.fixture
def scratch():
    return Scratch(torch.float64, torch.device('cpu'))


def test_tensors_of_two_names_lie_apart(scratch):
    a, b = scratch.take('a', 2, 3), scratch.take('b', 2, 3)
    a.fill_(1)
    b.fill_(2)
    assert a.eq(1).all()
    assert a.shape == (2, 3)
    assert a.is_contiguous()
    assert a.dtype == torch.float64


def test_memory_is_taken_again(scratch):
    first = scratch.take('a', 4, 3)
    scratch.give_back('a')
    assert scratch.take('a', 5).data_ptr() == first.data_ptr()
    scratch.give_back('a')
    assert scratch.take('a', 13).shape == (13,)


def test_a_taken_name_is_refused(scratch):
    scratch.take('a', 2)
    with pytest.raises(RuntimeError, match="'a' is taken"):
        scratch.take('a', 2)
    scratch.give_back('a')
    scratch.take('a', 2)
    scratch.take('b', 2)
    scratch.take('c', 2)
    scratch.give_back('a', 'c')
    scratch.take('a', 2)
    with pytest.raises(RuntimeError, match="'b' is taken"):
        scratch.take('b', 2)
    scratch.give_back()
    scratch.take('b', 2)
    with pytest.raises(KeyError, match='a'):
        scratch.give_back('a')


def test_use_after_its_time_shows(poisoned_memory):
    scratch = Scratch(torch.float64, torch.device('cpu'))
    kept, other = scratch.take('a', 2, 3), scratch.take('b', 2)
    assert kept.isnan().all()
    kept.fill_(1)
    other.fill_(2)
    scratch.give_back('a')
    assert kept.isnan().all()
    assert other.eq(2).all()
    scratch.give_back()
    assert other.isnan().all()


def test_names_last_for_a_strip(poisoned_memory):
    high, low = torch.ones(1, 2, 4, 40), torch.ones(1, 2, 2, 20)
    kept = None
    for strip in Geometry(high, low, 3).strips(2):
        assert kept is None or kept.isnan().all()
        kept = load_pixels(strip, 'high', high)
        assert kept.eq(1).all()
        with pytest.raises(RuntimeError, match="'high' is taken"):
            load_pixels(strip, 'high', high)
    assert kept.isnan().all()
