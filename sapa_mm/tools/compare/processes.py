"""Runs the processes of a comparison, which several threads start and one call stops."""

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import ToolError


class Processes:
    """Runs commands, each for the thread that calls, until all are stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Tell whether nothing starts any more."""
        return self._stopped

    def stop(self) -> None:
        """Terminate what runs, and let nothing start from now on."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def run(
        self,
        arguments: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        lock: int,
        on_line: Callable[[str], None],
    ) -> int:
        """Run a command to its end, its output going to a log.

        Args:
            arguments: The command.
            log: File to add to.
            env: Its environment.
            lock: Descriptor that it keeps.
            on_line: Called with every line of output.

        Returns:
            The most memory that it had, in bytes.

        Raises:
            ToolError: It failed, where the message has the end of its log, or all is stopped.
        """
        with open(log, 'a', buffering=1) as file:  # by lines
            file.write(f'$ {shlex.join(arguments)}\n')
            process = self._start(arguments, env, lock)
            assert process.stdout is not None  # it is a pipe
            for line in process.stdout:
                file.write(line)
                on_line(line)
            # This waits as `wait` does, but it tells what the process used.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            tail = ''.join(log.read_text(errors='replace').splitlines(keepends=True)[-15:])
            raise ToolError(f'failed with status {process.returncode}; the end of {log}:\n{tail}')
        # It is bytes on macOS, and KiB elsewhere.
        return usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)

    def _start(
        self, arguments: Sequence[str], env: Mapping[str, str], lock: int
    ) -> subprocess.Popen[str]:
        # Under the lock no process can start that `stop` does not see.
        with self._lock:
            if self._stopped:
                raise ToolError('stopped')
            process = subprocess.Popen(
                arguments,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                env=env,
                pass_fds=[lock],
            )
            self._running.add(process)
        return process
