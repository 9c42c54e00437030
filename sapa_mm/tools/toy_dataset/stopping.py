"""Lets signals stop a program at places that it chooses."""

import signal


class StopRequested(BaseException):
    """Says that a signal asked the program to stop.

    Args:
        signum: The signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Note SIGINT and SIGTERM, so that the work stops between two images and at no other place."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> 'StopSignals':
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _frame: object) -> None:
        self.received = self.received or signum

    def check(self) -> None:
        """Raise StopRequested if a signal came."""
        if self.received is not None:
            raise StopRequested(self.received)
