"""What the frameworks' train and test scripts leave in a work dir."""

import json
from pathlib import Path

from .errors import ToolError

# What a log's line of a validation or test has besides its metrics.
NOT_METRICS = ('data_time', 'time', 'step', 'epoch', 'iter')


def last_metrics(folder: Path) -> dict[str, float]:
    """The metrics of the latest validation or test among a work dir's logs.

    Args:
        folder: The work dir.

    Raises:
        ToolError: There is none.
    """
    # A training logs all of its lines to one file, a test its only line to another.
    logs = [*folder.glob('*/vis_data/scalars.json'), *folder.glob('*/*.json')]
    for path in sorted(logs, key=lambda path: path.relative_to(folder).parts[0], reverse=True):
        for line in reversed(path.read_text().splitlines()):
            record = json.loads(line)
            if 'loss' in record:
                continue
            found = {
                key: value
                for key, value in record.items()
                if key not in NOT_METRICS and isinstance(value, (int, float))
            }
            if found:
                return found
    raise ToolError(f'{folder} holds no result of a validation or test; train or test first')
