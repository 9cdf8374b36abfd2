"""SIGTERM, put off until a step is done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_STATUS = 128 + signal.SIGTERM


class Termination:
    """Within its `with`, SIGTERM only sets `asked`; whoever looks at it ends the process by `end`.

    In the main thread alone, which alone may set handlers; and not where the signal is ignored.
    """

    def __init__(self, *, awaited: bool = True) -> None:
        self.asked = False
        self._awaited = awaited and threading.current_thread() is threading.main_thread()
        self._former: Any = None

    def __enter__(self) -> Termination:
        # None: a handler that did not come from Python, and could not be put back.
        if self._awaited and signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, None):
            self._former = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        if self.asked and kind is None:
            self.end()

    def end(self) -> None:
        """Let the signal do what it would have done."""
        self._restore()
        signal.raise_signal(signal.SIGTERM)
        raise SystemExit(_STATUS)  # where a handler thought better of it

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _restore(self) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)
            self._former = None
