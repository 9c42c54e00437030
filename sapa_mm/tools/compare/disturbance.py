"""Finds runs whose iterations took longer or shorter than usual, as beside other work."""

import statistics
from collections.abc import Mapping

from .history import History

# A time that differs by a larger share than this from the usual one is a disturbance.
TOLERANCE = 0.2


def differs(by: float) -> str:
    """Say by how much a time differs, of which ``by`` is the relative excess."""
    return f'{100 * abs(by):.0f} % {"longer" if by > 0 else "shorter"}'


def within(history: History) -> str | None:
    """Compare the tenths of a training with the whole of it.

    Args:
        history: Of the run.

    Returns:
        What the worst tenth's median iteration was by more than `TOLERANCE`; None if there is no
        such tenth.
    """
    if not history.steady:
        return None
    usual = statistics.median(history.steady.values())
    tenths: dict[int, list[float]] = {}
    for step, seconds in history.steady.items():
        tenths.setdefault(min((step - 1) * 10 // history.end, 9), []).append(seconds)
    excess = {tenth: statistics.median(times) / usual - 1 for tenth, times in tenths.items()}
    worst = max(excess, key=lambda tenth: abs(excess[tenth]))
    if abs(excess[worst]) <= TOLERANCE:
        return None
    return f'{differs(excess[worst])} in tenth {worst + 1} of 10 than in the whole training'


def disturbances(histories: Mapping[int, History]) -> dict[int, str]:
    """Find the disturbed runs among those of a variant.

    A run is disturbed where an iteration of one of its tenths, by the median, took more than 20 %
    longer or shorter than one of all of it, or one of all of it than the median over the seeds.

    Args:
        histories: By seed.

    Returns:
        How long an iteration took, by seed, of the disturbed ones.
    """
    medians = {
        seed: statistics.median(history.steady.values())
        for seed, history in histories.items()
        if history.steady
    }
    found = {}
    for seed, history in histories.items():
        reasons = [reason] if (reason := within(history)) else []
        if seed in medians:
            excess = medians[seed] / statistics.median(medians.values()) - 1
            if abs(excess) > TOLERANCE:
                reasons.append(f'{differs(excess)} than the median over the seeds')
        if reasons:
            found[seed] = ', and '.join(reasons)
    return found
