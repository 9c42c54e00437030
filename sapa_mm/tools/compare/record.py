"""Writes what a comparison measured as data, for tables and plots of one's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..output import write_json
from .curves import training_seconds
from .variants import Variant


def _run(variant: Variant, seed: int) -> dict[str, Any]:
    result, history = variant.results[seed], variant.histories.get(seed)
    run: dict[str, Any] = {'seed': seed, 'metrics': result['metrics']}
    run['iteration_seconds'] = result['seconds']
    if history:
        run['validations'] = [
            {'iteration': step, 'seconds': history.seconds(step), 'metrics': metrics}
            for step, metrics in sorted(history.validations.items())
        ]
    run['disturbed'] = variant.disturbed.get(seed)
    return run


def write_record(
    path: Path, notes: Sequence[str], budgets: Mapping[str, Sequence[Variant]]
) -> None:
    """Write report.json.

    It has 'notes' and, under 'budgets', by the budget's key and the upsampler's name,
    'trained' (such as '600 iterations'), 'training_seconds' (the mean over the seeds), 'cost' (of
    `benchmark.py --models`) and 'runs'. A run has its 'seed', the test's 'metrics', the median
    'iteration_seconds', the 'validations', each after so many iterations and 'seconds' of
    training, and in what way it was 'disturbed', or null.

    Args:
        path: File to write.
        notes: Paragraphs on what was run where.
        budgets: All variants by the budget's key, not all of which need results.
    """
    record = {
        budget: {
            v.name: {
                'trained': v.length,
                'training_seconds': training_seconds(v),
                'cost': v.cost,
                'runs': [_run(v, seed) for seed in sorted(v.results)],
            }
            for v in variants
        }
        for budget, variants in budgets.items()
    }
    write_json(path, {'notes': list(notes), 'budgets': record})
