"""Differentiable SLIC by the cell, beside the form with all pixels against all superpixels."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ...ops import reference, soft_slic
from ...ops.parents import upsample_parent
from ..output import markdown_table
from .candidates import Candidate, reason_of
from .measure import memory
from .rows import PASSES, NotTimed
from .stopwatch import Stopwatch

# SSN's training (Jampani et al., ECCV 2018; Suzuki, 2021): 169 superpixels of crops of 208 x 208.
CHANNELS, SIDE, GRID, ITERATIONS = 20, 208, (13, 13), 5
BY_CELL, DENSE = 'soft_slic', 'all pixels x all superpixels'
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ClusteringTiming:
    """A `ClusteringTiming` is what was measured of one pass, a median over the rounds.

    Attributes:
        ms: Milliseconds of the device.
        ms_min_max: Least and most of them.
        time_over_soft_slic: Time over that of `soft_slic`.
        extra_bytes: Peak bytes that a call allocates beyond its results.
    """

    ms: float
    ms_min_max: tuple[float, float]
    time_over_soft_slic: float
    extra_bytes: int

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it."""
        return asdict(self)


@dataclass
class ClusteringRow:
    """A `ClusteringRow` is what was found of one form.

    Attributes:
        candidate: Name of the form.
        error: Largest difference of a weight from the float64 reference; None if it did not run.
        passes: The result of every pass, by its label in `PASSES`.
    """

    candidate: str
    error: float | None = None
    passes: dict[str, ClusteringTiming | NotTimed] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it: every pass under its label."""
        passes = {label: found.record() for label, found in self.passes.items()}
        return {'candidate': self.candidate, 'error': self.error, **passes}


def by_cell(features: Tensor) -> Tensor:
    """Return the weights (N, 9, H, W) of `soft_slic`."""
    return soft_slic(features, GRID, ITERATIONS).weights


def dense(features: Tensor) -> Tensor:
    """Return the same weights from a matrix of all pixels and superpixels."""
    places = torch.arange(1, GRID[0] * GRID[1] + 1, device=features.device, dtype=features.dtype)
    columns = F.unfold(places.view(1, 1, *GRID), 3, padding=1).unflatten(2, GRID)
    window = upsample_parent(columns, features.shape[2:]).flatten(2)[0].long()  # (9, P)
    near = torch.zeros(1 + len(places), window.shape[1], dtype=torch.bool, device=features.device)
    near = near.scatter(0, window, torch.ones_like(window, dtype=torch.bool))[1:]  # (K, P)
    points = features.flatten(2)

    def assign(centers: Tensor) -> Tensor:
        scores = 2 * centers.transpose(1, 2) @ points - centers.square().sum(1)[:, :, None]
        return scores.masked_fill(~near, float('-inf')).softmax(1)  # (N, K, P)

    weights = assign(F.adaptive_avg_pool2d(features, GRID).flatten(2))
    for _ in range(ITERATIONS - 1):
        weights = assign(points @ weights.transpose(1, 2) / weights.sum(2)[:, None])
    padded = F.pad(weights, (0, 0, 1, 0))
    return padded.gather(1, window.expand(len(points), -1, -1)).view(-1, 9, *features.shape[2:])


def measure_clustering(batch: int, rounds: int, watch: Stopwatch) -> list[ClusteringRow]:
    """Check both forms, and time them in turns.

    Args:
        batch: Images.
        rounds: Timed rounds, after one that warms up.
        watch: What times them.

    Returns:
        A row for each form.
    """
    torch.manual_seed(0)
    shape = (batch, CHANNELS, SIDE, SIDE)
    features = torch.randn(shape, device=watch.device)
    tensors = dict(features=features, out=features.new_ones(batch, 9, SIDE, SIDE).normal_())
    exact = reference.soft_slic(features[:1].double(), GRID, ITERATIONS)
    live: list[Candidate] = []
    rows = []
    for name, function in ((BY_CELL, by_cell), (DENSE, dense)):
        row = ClusteringRow(name)
        rows.append(row)
        candidate = Candidate(name, function, ('features',))
        try:
            (out,) = candidate.run(tensors, None)
            row.error = (out[:1] - exact).abs().max().item()
            del out
        except Exception as error:  # whatever it is: the other form is timed
            row.passes = dict.fromkeys(PASSES, NotTimed(reason_of(error)))
            continue
        if not row.error <= TOLERANCE:
            wrong = NotTimed(f'its error {row.error:.1e} exceeds {TOLERANCE:.0e}', refused=True)
            row.passes = dict.fromkeys(PASSES, wrong)
            continue
        live.append(candidate)
    for label in PASSES:
        print(f'{label}: {", ".join(c.name for c in live)}', file=sys.stderr, flush=True)
        grad = None if label == PASSES[0] else tensors['out']
        calls = {c.name: partial(c.run, tensors, grad) for c in live}
        peaks = {}
        for candidate in live:
            peak, results = memory(candidate, tensors, grad)
            peaks[candidate.name] = peak - results
        seconds = time_in_turns(calls, rounds, watch)
        for row in rows:
            if row.candidate in calls:
                row.passes[label] = summarize(row.candidate, seconds, peaks)
    return rows


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, watch: Stopwatch
) -> dict[str, list[float]]:
    """Return the seconds of every round by the call's name, but for the first, which warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            taken, _ = watch.seconds(call)
            if i:
                seconds[name].append(taken)
    return seconds


def summarize(
    name: str, seconds: dict[str, list[float]], peaks: dict[str, int]
) -> ClusteringTiming:
    """Summarize the rounds of one form and pass by medians."""
    own, base = seconds[name], seconds.get(BY_CELL, seconds[name])
    return ClusteringTiming(
        ms=1e3 * statistics.median(own),
        ms_min_max=(1e3 * min(own), 1e3 * max(own)),
        time_over_soft_slic=statistics.median(t / b for t, b in zip(own, base, strict=True)),
        extra_bytes=peaks[name],
    )


def clustering_table(rows: Sequence[ClusteringRow]) -> str:
    """Return the rows in Markdown."""
    lines = []
    for row in rows:
        line = [row.candidate]
        for label in PASSES:
            found = row.passes[label]
            if isinstance(found, NotTimed):
                line.append(f'not timed: {found.reason}')
                continue
            ratio = f'({found.time_over_soft_slic:.2f}x)'
            line.append(f'{found.ms:.0f} ms {ratio}, {found.extra_bytes / 2**20:.0f} MiB')
        lines.append(line)
    return markdown_table(['form', *PASSES], lines, texts=1)
