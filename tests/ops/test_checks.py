"""Checks of plain arguments, which modules of every kind share."""

import re

import pytest

from sapa_mm.ops.checks import check_bool, check_int, check_positive_int

INTS = {
    'an int': {},
    'an int of at least 0': {'low': 0},
    'a positive int': {'low': 1},
    'an int of at most 4': {'high': 4},
    'an int from 0 to 4': {'low': 0, 'high': 4},
}


def check_refused(check, value, wanted, error, **bounds):
    message = f'argument: expected {wanted}, got {value!r}'
    with pytest.raises(error, match=f'^{re.escape(message)}$'):
        check('argument', value, **bounds)


@pytest.mark.parametrize('wanted', INTS)
def test_int(wanted):
    bounds = INTS[wanted]
    for value in range(-2, 7):
        if bounds.get('low', value) <= value <= bounds.get('high', value):
            check_int('argument', value, **bounds)
        else:
            check_refused(check_int, value, wanted, ValueError, **bounds)
    for value in (True, False, 1.0, '1', None):
        check_refused(check_int, value, wanted, TypeError, **bounds)


def test_positive_int():
    check_positive_int('argument', 1)
    check_refused(check_positive_int, 0, 'a positive int', ValueError)
    check_refused(check_positive_int, 2.0, 'a positive int', TypeError)
    check_refused(check_positive_int, True, 'a positive int', TypeError)


def test_bool():
    for value in (True, False):
        check_bool('argument', value)
    for value in (1, 0, None, 'True'):
        check_refused(check_bool, value, 'True or False', TypeError)
