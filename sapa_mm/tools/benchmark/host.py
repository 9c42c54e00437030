"""The time that calls take of the host."""

import contextlib
import dataclasses
import importlib
import statistics
import sys
import timeit
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ... import ops
from ..output import markdown_table
from .candidates import BILINEAR, OURS, SAPA_FORMS, Candidate, candidates, reason_of
from .measure import draw
from .report import number
from .rows import PASSES, HostRow, HostTiming, NotTimed
from .shapes import Shape
from .stopwatch import synchronize

# A device has next to nothing to compute here.
SHAPE = Shape('host 16x16', 1, 16, 16)
NAMES = (BILINEAR, OURS, *(f'{name} module' for name in SAPA_FORMS))
# This many calls in a row are far fewer than a device queues.
CALLS = 30


@contextlib.contextmanager
def launches(name: str, device: torch.device) -> Iterator[None]:
    """Run a candidate's calls in this context: on a CPU launching a kernel does nothing.

    Args:
        name: The candidate; bilinear interpolation, which has no such kernel, runs as it is.
        device: Where it runs.
    """
    if device.type == 'cuda' or name == BILINEAR:
        yield
        return
    with importlib.import_module('sapa_mm.kernels.launch').stubbed(), ops.backend('triton'):
        yield


def dtype_on(device: torch.device) -> torch.dtype:
    """Return the dtype of the inputs: float16, on a CPU, which is slow in that, float32."""
    return torch.float16 if device.type == 'cuda' else torch.float32


def contestants(device: torch.device, autocast: bool) -> list[Candidate]:
    """Return what is compared: parameters are in `dtype_on`'s dtype, under autocast in float32.

    Args:
        device: Where it runs.
        autocast: Whether the forward runs under autocast.
    """
    dtype = torch.float32 if autocast else dtype_on(device)
    found = candidates(SHAPE, device, dtype, 'off', NAMES)
    return [under_autocast(candidate, device) for candidate in found] if autocast else found


def under_autocast(candidate: Candidate, device: torch.device) -> Candidate:
    """Return a candidate whose forward runs under autocast, and its backward outside, as it should.

    Args:
        candidate: The candidate.
        device: Where it runs.
    """
    function = candidate.function
    if function is None:
        return candidate

    def call(*inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.float16):
            return function(*inputs)

    return dataclasses.replace(candidate, function=call)


def repeatedly(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the seconds that one of several calls in a row takes of the host.

    Args:
        call: The call.
        calls: How many.
        device: The device, which is idle before the first of them, and is not waited for after the
            last until the clock has stopped.
    """
    synchronize(device)
    seconds = timeit.Timer(call).timeit(calls) / calls  # without garbage collection
    synchronize(device)
    return seconds


def measure_host(rounds: int, device: torch.device) -> list[HostRow]:
    """Time what calls take of the host, in turns, after a round that warms up.

    Args:
        rounds: Timed rounds of `CALLS` calls.
        device: Where they run.

    Returns:
        A row for each candidate, without autocast and with it.
    """
    torch.manual_seed(0)
    names = {'query', 'key', 'value', 'guide'}
    tensors = draw(SHAPE, names, dtype_on(device), 'nchw', device)
    rows: list[HostRow] = []
    for autocast in (False, True):
        print(f'[{autocast + 1}/2] {"" if autocast else "no "}autocast', file=sys.stderr)
        contenders = contestants(device, autocast)
        found = {c.name: HostRow(c.name, autocast) for c in contenders}
        for label in PASSES:
            for name, result in time_calls(contenders, label, tensors, rounds).items():
                found[name].passes[label] = result
        rows += found.values()
    return rows


def time_calls(
    contenders: Sequence[Candidate], label: str, tensors: dict[str, Tensor], rounds: int
) -> dict[str, HostTiming | NotTimed]:
    """Time one pass of candidates in turns.

    Args:
        contenders: The candidates; bilinear interpolation is among them.
        label: The pass, one of `PASSES`.
        tensors: Tensors by name.
        rounds: Timed rounds.

    Returns:
        The result of each, by its name.
    """
    device = tensors['out'].device
    results: dict[str, HostTiming | NotTimed] = {}
    taken: dict[str, list[float]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for candidate in contenders:
        if candidate.reason:
            results[candidate.name] = NotTimed(candidate.reason)
            continue
        try:
            with launches(candidate.name, device):
                (out,) = candidate.run(tensors, None)
                # On a CPU autocast interpolates in float32.
                grad = None if label == PASSES[0] else torch.ones_like(out)
                candidate.run(tensors, grad)
            calls[candidate.name] = partial(candidate.run, tensors, grad)
            taken[candidate.name] = []
        except Exception as error:  # whatever it is: the others are timed
            results[candidate.name] = NotTimed(reason_of(error))
    for i in range(rounds + 1):
        for name, call in calls.items():
            with launches(name, device):
                seconds = repeatedly(call, CALLS, device)
            if i:
                taken[name].append(seconds)
    for name, seconds_of in taken.items():
        pairs = zip(seconds_of, taken[BILINEAR], strict=True)
        results[name] = HostTiming(
            us=1e6 * statistics.median(seconds_of),
            us_min_max=(1e6 * min(seconds_of), 1e6 * max(seconds_of)),
            time_over_bilinear=statistics.median(t / base for t, base in pairs),
        )
    return results


def host_table(rows: Sequence[HostRow]) -> str:
    """Return the rows in Markdown: microseconds, and how many times bilinear's they are."""
    lines = []
    for row in rows:
        line = [row.candidate, 'yes' if row.autocast else 'no']
        for label in PASSES:
            found = row.passes[label]
            if isinstance(found, NotTimed):
                same = label != PASSES[0] and found == row.passes[PASSES[0]]
                line.append('-' if same else f'not timed: {found.reason}')
            else:
                line.append(f'{found.us:.0f} us ({number(found.time_over_bilinear, ".1f")}x)')
        lines.append(line)
    return markdown_table(['candidate', 'autocast', *PASSES], lines, texts=2)
