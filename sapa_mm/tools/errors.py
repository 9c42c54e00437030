"""The one error that a tool reports without a traceback."""


class ToolError(Exception):
    """A user's mistake, or an environment that does not allow what is asked; the message says what.

    A tool prints the message, points to its ``--help`` and ends with exit status 2.
    """
