"""How the tests run this project's scripts, as a user does."""

import os
import subprocess
from pathlib import Path


def run_command(folder: Path, *command: object, **env: str) -> str:
    """Run a command in a folder, with one thread.

    Args:
        folder: Where.
        *command: The program and its arguments.
        **env: What the environment has besides.

    Returns:
        Its output, errors included; it must have succeeded.
    """
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout
