"""The measurements of the benchmark: checks first, then all candidates in turns."""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from .candidates import (
    BILINEAR,
    COMPILED,
    OURS,
    Candidate,
    candidates,
    default_names,
    reason_of,
)
from .check import TOLERANCE, Check
from .rows import PASSES, NotTimed, Row, Timing
from .shapes import Shape
from .stopwatch import Stopwatch, synchronize

LAYOUTS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}

# The profiler reads it at its first start, whose messages are no news.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')


def draw(
    shape: Shape, names: set[str], dtype: torch.dtype, layout: str, device: torch.device
) -> dict[str, Tensor]:
    """Draw the named tensors and the gradient of the result (``'out'``)."""
    sizes = shape.sizes()
    tensors = {
        name: torch.empty(sizes[name], dtype=dtype, device=device, memory_format=LAYOUTS[layout])
        for name in sorted(names | {'out'})
    }
    refill(tensors)
    return tensors


def refill(tensors: Mapping[str, Tensor]) -> None:
    """Fill with fresh normal numbers; scores have variance 1, and weights are positive, sum 1.

    With larger scores the check would be one of how a candidate rounds them in half precision.
    """
    for name, tensor in tensors.items():
        tensor.normal_(0, tensor.shape[1] ** -0.5 if name == 'query' else 1)
        if name == 'weights':
            tensor.copy_(tensor.float().softmax(1))


def memory(
    candidate: Candidate, tensors: dict[str, Tensor], grad: Tensor | None
) -> tuple[int, int]:
    """Return the peak bytes that a call allocates, and those of its results."""
    device = tensors['out'].device
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        results = candidate.run(tensors, grad)
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with torch.profiler.profile(profile_memory=True) as profile:
            results = candidate.run(tensors, grad)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
        level = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            level += event.nbytes()
            peak = max(peak, level)
    return peak, sum(x.nbytes for x in results)


def first_calls(candidate: Candidate, tensors: dict[str, Tensor], check: Check, row: Row) -> None:
    """Call a candidate for the first time, forward and with backward, and check its results.

    Args:
        candidate: The candidate.
        tensors: Tensors by name.
        check: The check of these tensors.
        row: What gets the times and the error, and a `NotTimed` for every pass that is not to be
            timed: both passes if the result of one is wrong.
    """
    device = tensors['out'].device
    limit = TOLERANCE[str(tensors['out'].dtype).removeprefix('torch.')]
    problem = NotTimed(candidate.reason) if candidate.reason else None
    got: list[Tensor] | None
    for label, grad in zip(PASSES, (None, check.grad), strict=True):
        if not problem:
            try:
                synchronize(device)
                start = time.perf_counter()
                got = candidate.run(tensors, grad)
                synchronize(device)
                row.first_call_s[label] = time.perf_counter() - start
                if candidate.exact:
                    error = check.error(candidate, got)
                    row.error = max(row.error or 0.0, error)
                    if not error <= limit:
                        row.error = error  # which the maximum is not if it is NaN
                        reason = f'its error {error:.1e} exceeds {limit:.0e}'
                        problem = NotTimed(reason, refused=True)
            except Exception as raised:  # whatever it is: no rival ends the benchmark
                problem = NotTimed(reason_of(raised))
            got = None  # else its memory is taken during the next call
        if problem:
            row.passes[label] = problem
    if problem and problem.refused:
        row.passes[PASSES[0]] = problem


def time_pass(
    contenders: Sequence[Candidate],
    label: str,
    tensors: dict[str, Tensor],
    shape: Shape,
    rounds: int,
    watch: Stopwatch,
) -> dict[str, Timing | NotTimed]:
    """Time one pass of candidates in turns.

    Args:
        contenders: The candidates that may be timed.
        label: The pass, one of `PASSES`.
        tensors: Tensors by name.
        shape: The sizes.
        rounds: Timed rounds.
        watch: What times them.

    Returns:
        The result of each, by its name.
    """
    grad = None if label == PASSES[0] else tensors['out']
    live = {candidate.name: candidate for candidate in contenders}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in live}
    launches = dict.fromkeys(live, 0.0)
    peaks: dict[str, tuple[int, int]] = {}
    copies: list[float] = []
    results: dict[str, Timing | NotTimed] = {}
    for i in range(rounds + 1):
        if watch.device.type == 'cuda':
            refill(tensors)
        bandwidth = watch.copy_bandwidth()
        for name, candidate in list(live.items()):
            try:
                seconds = watch.seconds(partial(candidate.run, tensors, grad), launches[name])
                launches[name] = seconds[1]
                if not i:  # the first round warms up
                    peaks[name] = memory(candidate, tensors, grad)
            except Exception as error:
                results[name] = NotTimed(reason_of(error))
                del live[name]
                continue
            if i:
                times[name].append(seconds)
        if i:
            copies.append(bandwidth)
    bases = {base: times[base] for base in (OURS, BILINEAR) if base in live}
    for name, candidate in live.items():
        least_bytes = candidate.least_bytes(shape, tensors['out'].itemsize, label)
        base = peaks[BILINEAR][0] if BILINEAR in live else None
        results[name] = summarize(peaks[name], base, least_bytes, times[name], bases, copies)
    return results


def summarize(
    peaks: tuple[int, int],
    bilinear_peak: int | None,
    least_bytes: int,
    times: Sequence[tuple[float, float]],
    bases: Mapping[str, Sequence[tuple[float, float]]],
    copies: Sequence[float],
) -> Timing:
    """Summarize the rounds of one candidate and pass by medians.

    Args:
        peaks: Bytes that a call allocates at its peak, and those of its results among them.
        bilinear_peak: The former of bilinear interpolation; None if that was not timed.
        least_bytes: Bytes that a call must move.
        times: Seconds of the device, and to launch, by round.
        bases: The same of the candidates to compare with.
        copies: Bytes per second of a copy, by round.
    """
    seconds = [t for t, _ in times]

    def ratio(base: str) -> float | None:
        if base not in bases:
            return None
        return statistics.median(t / b for t, (b, _) in zip(seconds, bases[base], strict=True))

    shares = [least_bytes / t / copy for t, copy in zip(seconds, copies, strict=True)]
    return Timing(
        extra_bytes=peaks[0] - peaks[1],
        peak_bytes=peaks[0],
        peak_over_bilinear=peaks[0] / bilinear_peak if bilinear_peak else None,
        ms=1e3 * statistics.median(seconds),
        ms_min_max=(1e3 * min(seconds), 1e3 * max(seconds)),
        launch_ms=1e3 * statistics.median(launch for _, launch in times),
        time_over_sapa_mm=ratio(OURS),
        time_over_bilinear=ratio(BILINEAR),
        least_bytes=least_bytes,
        gb_per_s=least_bytes / statistics.median(seconds) / 1e9,
        copy_gb_per_s=statistics.median(copies) / 1e9,
        of_copy=statistics.median(shares),
    )


def measure(
    shape: Shape,
    dtype: str,
    layout: str,
    rounds: int,
    compilation: str,
    watch: Stopwatch,
    names: Sequence[str] = (),
) -> list[Row]:
    """Check and time candidates at one shape, dtype and layout.

    Args:
        shape: The sizes.
        dtype: Name in `TOLERANCE`.
        layout: Name in `LAYOUTS`.
        rounds: Timed rounds.
        compilation: Name in `COMPILE_MODES`, or ``'off'``.
        watch: What times them.
        names: The candidates. Default: those of `default_names`.

    Returns:
        A row for each.
    """
    torch.manual_seed(0)
    names = names or default_names(None)
    if compilation != 'off' and not set(COMPILED).isdisjoint(names):
        torch.compiler.reset()  # else torch takes new sizes for dynamic ones, and then gives up
    contenders = candidates(shape, watch.device, getattr(torch, dtype), compilation, names)
    inputs = {name for c in contenders if not c.reason for name in c.inputs}
    tensors = draw(shape, inputs, getattr(torch, dtype), layout, watch.device)
    check = Check(shape, tensors)
    rows = {c.name: Row(shape.name, dtype, layout, c.name) for c in contenders}
    for candidate in contenders:
        first_calls(candidate, tensors, check, rows[candidate.name])
    for label in PASSES:
        timed = [c for c in contenders if label not in rows[c.name].passes]
        for name, found in time_pass(timed, label, tensors, shape, rounds, watch).items():
            rows[name].passes[label] = found
    return list(rows.values())
