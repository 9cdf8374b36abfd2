"""Processes that read and decode, one for every core, and what happens when one of them dies.

Not `multiprocessing`: its processes import the main program with all that it imports, and one that
dies ends the whole pool of `concurrent.futures`. Here a process that dies is replaced, its block is
done again step by step, and the item that it died of becomes a row of the quarantine.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from stages.errors import WinnowError
from stages.ingestion.blocks import BlockResult
from stages.ingestion.messages import Failed, Setup, Step, Task, receive, send
from stages.ingestion.source import Payload

_AHEAD = 2  # tasks that a process has at once: it need not wait for the next
_STARTS = 3  # attempts to start a process
_MAX_CRASHES = 100  # then it is not the images: too little memory, or a broken library
_ROOT = Path(__file__).parents[2]  # where `stages` is found
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_GONE = (EOFError, OSError)

_Job = tuple[Task, "Future[BlockResult]"]


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """Worker processes; they start at once, and end with the `with` block or with this process.

    Parameters
    ----------
    count : how many
    setup : what they are to make
    """

    def __init__(self, count: int, setup: Setup) -> None:
        self.count = count
        self.jobs: queue.Queue[_Job | None] = queue.Queue()
        self._setup = setup
        self._lock = threading.Lock()
        self._processes: set[_Process] = set()
        self._closed = False
        self._crashes = 0
        self._feeders = [_Feeder(self) for _ in range(count)]
        for feeder in self._feeders:
            feeder.start()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, start: int, payload: Payload) -> Future[BlockResult]:
        """Have a block read by whichever process is free; see `blocks.read_block`.

        The future brings a WinnowError where processes do not start, crash again and again, or
        cannot write.
        """
        future: Future[BlockResult] = Future()
        self.jobs.put((Task(start, payload), future))
        return future

    def close(self) -> None:
        """End all processes. Tasks that are not done are given up."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        for _ in self._feeders:
            self.jobs.put(None)
        for feeder in self._feeders:
            feeder.join()

    def start(self) -> _Process:
        """A process that is ready for tasks."""
        for _ in range(_STARTS):
            with self._lock:
                if self._closed:
                    raise _ClosedError
                process = _Process(self._setup)
                self._processes.add(process)
            try:
                process.receive()
            except _GONE:
                said = process.last_words()
                self.end(process)
            else:
                return process
        raise WinnowError(f"the processes that decode images end as they start: {said}")

    def end(self, process: _Process) -> None:
        """Wait for a process to be gone."""
        with self._lock:
            self._processes.discard(process)
        process.end()

    def note_crash(self) -> None:
        """Count a process that died of an item.

        Raises
        ------
        WinnowError
            Where there have been too many.
        """
        with self._lock:
            self._crashes += 1
            if self._crashes > _MAX_CRASHES:
                raise WinnowError(
                    f"the processes that decode images crashed more than {_MAX_CRASHES} times: "
                    "see whether there is enough memory, and whether Pillow and OpenCV are in order"
                )


class _Feeder(threading.Thread):
    """Gives one process its tasks and takes its answers."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="worker-feeder", daemon=True)
        self._pool = pool
        self._process: _Process | None = None
        self._waiting: deque[_Job] = deque()

    def run(self) -> None:
        """Work until the pool closes; after an error, hand it on to whoever waits."""
        try:
            self._process = self._pool.start()
            self._work()
        except Exception as error:
            for _, future in self._waiting:
                future.set_exception(error)
            while (job := self._pool.jobs.get()) is not None:
                job[1].set_exception(error)
        finally:
            if self._process is not None:
                self._pool.end(self._process)

    def _work(self) -> None:
        while self._fill():
            try:
                answer = self._running.receive()
            except _GONE:
                self._recover()
            else:
                self._deliver(answer)

    @property
    def _running(self) -> _Process:
        assert self._process is not None  # noqa: S101  (`run` starts it first)
        return self._process

    def _fill(self) -> bool:
        """Send tasks ahead; False when the pool closes."""
        while len(self._waiting) < _AHEAD:
            try:
                job = self._pool.jobs.get(block=not self._waiting)
            except queue.Empty:
                break
            if job is None:
                return False
            self._waiting.append(job)
            with contextlib.suppress(OSError):  # it has died: there will be no answer
                self._running.send(job[0])
        return True

    def _deliver(self, answer: object) -> None:
        if isinstance(answer, Failed):
            raise RuntimeError(answer.trace) if answer.trace else WinnowError(answer.reason)
        self._waiting.popleft()[1].set_result(cast(BlockResult, answer))

    def _recover(self) -> None:
        """Do all that a dead process had to do in a new one, step by step."""
        self._restart()
        while self._waiting:
            self._deliver(self._step_by_step(replace(self._waiting[0][0], crashed=frozenset())))

    def _step_by_step(self, task: Task) -> object:
        while True:
            step: object = None
            try:
                self._running.send(task)
                while isinstance(answer := self._running.receive(), Step):
                    step = answer
                return answer
            except _GONE:
                self._pool.note_crash()
                self._restart()
            if isinstance(step, Step) and step.has_read:
                task = replace(task, crashed=(task.crashed or frozenset()) | {step.index})
            else:
                task = replace(task, limit=step.index if isinstance(step, Step) else 0)

    def _restart(self) -> None:
        self._pool.end(self._running)
        self._process = None
        self._process = self._pool.start()


class _Process:
    """One worker process."""

    def __init__(self, setup: Setup) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `end`)
        paths = [str(_ROOT), *(entry or str(Path.cwd()) for entry in sys.path)]
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "stages.ingestion.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self._orders = cast(BinaryIO, self._popen.stdin)
        self._answers = cast(BinaryIO, self._popen.stdout)
        with contextlib.suppress(OSError):  # it has died: there will be no answer
            self.send(setup)

    def send(self, message: object) -> None:
        send(self._orders, message)

    def receive(self) -> Any:
        return receive(self._answers)

    def kill(self) -> None:
        self._popen.kill()

    def last_words(self) -> str:
        """The last line it wrote to its standard error."""
        self._popen.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "they say nothing")

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()
        with contextlib.suppress(OSError):  # what was on its way
            self._orders.close()
        self._answers.close()
        self._stderr.close()


class _ClosedError(Exception):
    """The pool was closed while a process was to start."""
