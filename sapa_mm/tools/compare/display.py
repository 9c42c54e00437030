"""Shows on the terminal how far runs are."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn


class Display:
    """Shows a bar for each of the runs that go on, one for all, and what comes of them above.

    Threads share it; the bars stay for as long as its `with` block lasts.

    Args:
        total: How many runs there are to make.
    """

    def __init__(self, total: int) -> None:
        console = Console(highlight=False, markup=False)
        columns = '{task.description}', BarColumn(), '{task.percentage:>3.0f}%'
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._all = self._progress.add_task('all runs', total=total)

    def __enter__(self) -> 'Display':
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, style=style, soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, name: str) -> Iterator[Callable[[float], None]]:
        """Show the bar of a run.

        Args:
            name: What the run is called.

        Yields:
            What to call with the share of the run that is done. After the block it is all.
        """
        task = self._progress.add_task(name, total=1)
        most = 0.0

        def advance(share: float) -> None:
            nonlocal most
            self._progress.update(task, completed=share)
            self._progress.advance(self._all, max(share - most, 0))
            most = max(share, most)

        try:
            yield advance
        finally:
            advance(1.0)
            self._progress.remove_task(task)
