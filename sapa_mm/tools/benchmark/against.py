"""The comparison with figures that the benchmark wrote before."""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..output import markdown_table
from .rows import PASSES, TRAINING_PASSES

# What a record holds, by the key that it has for its rows.
KINDS = {
    'rows': 'figures of operators',
    'host': 'host times',
    'models': 'predictions of models',
    'training': 'training steps',
    'clustering': 'forms of soft_slic',
}
Place = tuple[str, ...]  # what was timed, in words


@dataclass(frozen=True)
class Baseline:
    """A `Baseline` is what an earlier run measured.

    Attributes:
        path: Its file.
        kind: One of `KINDS`.
        environment: Where it ran.
        figures: Milliseconds or microseconds by what was measured; None for what was not timed.
    """

    path: Path
    kind: str
    environment: Mapping[str, str]
    figures: Mapping[Place, float | None]


def times(record: Mapping[str, Any]) -> Iterator[tuple[Place, float | None]]:
    """Give the times of a record, each with its place: shape, dtype, layout, candidate and pass.

    Raises:
        LookupError, TypeError: It is no record of the benchmark.
    """
    for row in record.get('rows', ()):
        for label in PASSES:
            kind = (row['dtype'], row['layout'])
            yield (row['shape'], *kind, row['candidate'], label), row[label].get('ms')
    for row in record.get('host', ()):
        for label in PASSES:
            context = 'autocast' if row['autocast'] else 'no autocast'
            yield (context, row['candidate'], label), row[label].get('us')
    for row in record.get('clustering', ()):
        for label in PASSES:
            yield (f'batch {record["batch"]}', row['candidate'], label), row[label].get('ms')
    size = 'x'.join(map(str, (record.get('batch'), *record.get('size', ()))))
    for row in record.get('models', ()):
        yield (size, row['config'], 'prediction'), row['ms']
    for row in record.get('training', ()):
        for label in TRAINING_PASSES:
            yield (size, row['dtype'], row['config'], label), row[label].get('ms')


def read_baseline(text: str) -> Baseline:
    """Parse the path of a file that ``--json`` wrote, and read it.

    Raises:
        ArgumentTypeError: There is no such file, or it is no such file.
    """
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f'no file {text}: --json {text} writes one')
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        (kind,) = KINDS.keys() & record.keys()
        environment, figures = dict(record['environment']), dict(times(record))
        if not all(found is None or found > 0 for found in figures.values()):
            raise ValueError('times that are not positive')
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f'expected a file that --json wrote, got {text}, which is none '
            f'({type(error).__name__}): write one anew by --json'
        ) from error
    return Baseline(path, kind, environment, figures)


def other_environment(baseline: Mapping[str, str], info: Mapping[str, str]) -> list[str]:
    """Return a line for everything but the date in which two environments differ."""
    names = [name for name in dict.fromkeys([*info, *baseline]) if name != 'date']
    return [
        f'{name}: {baseline.get(name, "none")} then, {info.get(name, "none")} now'
        for name in names
        if baseline.get(name) != info.get(name)
    ]


def changes(
    pairs: Mapping[Place, tuple[float, float]], tolerance: float
) -> tuple[list[Place], list[Place]]:
    """Return what got slower, worst first, and what got faster, most first.

    Args:
        pairs: The earlier and the present time of everything.
        tolerance: Percent by which a time may change.
    """
    ratios = {place: after / before for place, (before, after) in pairs.items()}
    order = sorted(ratios, key=ratios.__getitem__)
    slower = [place for place in reversed(order) if ratios[place] > 1 + tolerance / 100]
    return slower, [place for place in order if ratios[place] < 1 - tolerance / 100]


def report(baseline: Baseline, record: Mapping[str, Any], tolerance: float) -> bool:
    """Print what got slower and faster since the baseline.

    Args:
        baseline: The earlier run.
        record: What the JSON holds of the present one, of the same kind.
        tolerance: Percent by which a time may change.

    Returns:
        Whether anything got slower or cannot be timed any more.
    """
    then, now = baseline.figures, dict(times(record))
    pairs: dict[Place, tuple[float, float]] = {}
    lost = []
    for place, before in then.items():
        after = now.get(place)
        if before is not None and after is not None:
            pairs[place] = before, after
        elif before is not None and place in now:
            lost.append(place)
    print(f'Against {baseline.path} ({baseline.environment.get("date", "no date")}):')
    others = other_environment(baseline.environment, record['environment'])
    if others:
        print(f'the environment is another: {"; ".join(others)}.')
    if lost:
        print(f'Not timed any more: {"; ".join(" ".join(place) for place in lost)}.')
    if not pairs:
        print('Nothing in it was timed here: give the options that it was written with.\n')
        return bool(lost)
    slower, faster = changes(pairs, tolerance)
    unit = 'us' if baseline.kind == 'host' else 'ms'
    head = ['what', f'{unit} then', f'{unit} now', 'ratio']
    for word, places in (('Slower', slower), ('Faster', faster)):
        print(f'{word} by more than {tolerance:g}%: {len(places) or "nothing"}.')
        lines = []
        for place in places:
            before, after = pairs[place]
            lines.append(
                [' '.join(place), f'{before:.4g}', f'{after:.4g}', f'{after / before:.2f}']
            )
        if lines:
            print(f'\n{markdown_table(head, lines, texts=1)}\n')
    print(
        f'{len(pairs) - len(slower) - len(faster)} of {len(pairs)} times are as they were; '
        f'{len(then.keys() - now.keys())} of the baseline were not asked for, '
        f'{len(now.keys() - then.keys())} are new.\n'
    )
    return bool(slower or lost)
