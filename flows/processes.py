"""Run commands in their own session: output line by line, and the whole group ends when asked.

SIGTERM to `dvc` alone leaves its stage running; a cancelled flow must not leave a GPU job behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

_PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL
_PROGRESS_EVERY = 2.0  # seconds between two states of a progress bar
_LINE_END = re.compile(rb"\r\n|\n|\r")


class StoppedError(RuntimeError):
    """Raised where a command was not run, or not to its end: everything was told to stop."""


class ProcessGroups:
    """Runs commands from several threads, each in its own session; `stop` ends them all."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def run(self, command: Sequence[str], env: Mapping[str, str], say: Callable[[str], None]) -> int:
        """Run `command`, give its output to `say` line by line, and return its exit status.

        Parameters
        ----------
        command : arguments; no shell
        env : the whole environment
        say : called with each line of stdout and stderr together, as it comes

        Raises
        ------
        StoppedError
            Where `stop` was called before it ended.
        """
        with self._lock:
            if self._stopping:
                raise StoppedError("the flow is ending")
            process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            if process.stdout is not None:
                with process.stdout:
                    for line in lines(process.stdout):
                        say(line)
            status = process.wait()
        except BaseException:
            end_group(process)
            raise
        finally:
            with self._lock:
                self._running.discard(process)
        if self._stopping:
            raise StoppedError("the flow is ending")
        return status

    def stop(self) -> None:
        """End every group that runs, and start no more."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        for process in running:
            end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Wait some seconds for a process that was told to end; then kill what is left of its group."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    # Its group has its id: it leads its own session. The group may outlive it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a stream as they come; of a progress bar a state now and then, and its last.

    A bar redraws itself behind carriage returns, many times a second: too much for a log.
    """
    rest, bar, shown = b"", "", 0.0
    while chunk := os.read(stream.fileno(), 65536):
        rest += chunk
        start = 0
        for end in _LINE_END.finditer(rest):
            if end.group() == b"\r" and end.end() == len(rest):
                break  # perhaps half of a \r\n
            text = rest[start : end.start()].decode("utf-8", "replace").rstrip()
            start = end.end()
            if end.group() != b"\r":
                yield from [text] if text else [bar] if bar else []
                bar = ""
            elif text and time.monotonic() - shown >= _PROGRESS_EVERY:
                shown, bar = time.monotonic(), ""
                yield text
            elif text:
                bar = text
        rest = rest[start:]
    last = rest.decode("utf-8", "replace").strip()
    yield from [last] if last else [bar] if bar else []
