"""Defines the one error that a tool reports without a traceback, and how it is reported."""

import argparse
import contextlib
from collections.abc import Iterator


class ToolError(Exception):
    """Says what a user got wrong, or how the environment does not allow what is asked.

    A tool prints the message, points to its ``--help`` and ends with exit status 2.
    """


@contextlib.contextmanager
def reported_by(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Report a ToolError of the block as the parser reports its own errors: after the usage.

    Args:
        parser: The tool's parser.

    Raises:
        SystemExit: The block raised a ToolError; the exit status is 2.
    """
    try:
        yield
    except ToolError as error:
        parser.error(str(error))
