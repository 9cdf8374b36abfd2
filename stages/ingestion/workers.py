"""Read and decode blocks in a process for every core, and lose one image, not the run, where one crashes.

The processes are loky's, which import neither the main program nor what it has imported. Where one dies,
all that were at work end; each block that was on its way is read again in a process by itself that notes
every step before it takes it, and the item that it dies of becomes a row of the quarantine.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Set
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from stages.errors import WinnowError
from stages.ingestion.blocks import BlockResult, Output, cannot_write, read_block
from stages.ingestion.source import Payload

_STARTS = 3  # attempts to start a process
_MAX_CRASHES = 100  # then it is not the images: too little memory, or a broken library
_ORPHAN_SECONDS = 0.5  # between a process's looks at whether its parent is still there
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_STEP = struct.Struct("<q?")  # an item's position in its block, and whether it has been read

_output: Output  # of a worker process


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Job:
    """A block on its way through a `Pool`; `start` is the place of its first item."""

    start: int
    payload: Payload
    future: Future[BlockResult]


class Pool:
    """Worker processes; they start at once, and end with the `with` block or with this process.

    Parameters
    ----------
    count : how many
    output : the squares and thumbnails that they write
    """

    def __init__(self, count: int, output: Output) -> None:
        self.count = count
        self.output = output
        self._crashes = 0
        self._executor = _start(count, output)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, kill_workers=True)

    def submit(self, start: int, payload: Payload) -> Job:
        """Have a block read by whichever process is free; see `blocks.read_block`."""
        try:
            future = self._executor.submit(_read, start, payload)
        except TerminatedWorkerError:
            self._executor.shutdown(wait=True, kill_workers=True)
            self._executor = _start(self.count, self.output)
            future = self._executor.submit(_read, start, payload)
        return Job(start, payload, future)

    def result(self, job: Job) -> BlockResult:
        """Wait for a block.

        Raises
        ------
        WinnowError
            Where processes do not start, crash again and again, or cannot write.
        """
        try:
            return job.future.result()
        except TerminatedWorkerError:
            return self._read_again(job)
        except OSError as error:
            raise WinnowError(cannot_write(self.output, error)) from None

    def _read_again(self, job: Job) -> BlockResult:
        """Read a block step by step, in a new process after each crash, without what it died of."""
        steps = self.output.squares.path.with_name("steps")
        crashed: set[int] = set()
        limit, starts = None, 0
        while starts < _STARTS:
            steps.write_bytes(b"")
            executor = _start(1, self.output)
            try:
                arguments = job.start, job.payload, frozenset(crashed), limit, steps
                return executor.submit(_read, *arguments).result()
            except TerminatedWorkerError:
                step = steps.read_bytes()
            except OSError as error:
                raise WinnowError(cannot_write(self.output, error)) from None
            finally:
                executor.shutdown(wait=True, kill_workers=True)
            if not step:
                starts += 1
                continue
            self._crashes += 1
            if self._crashes > _MAX_CRASHES:
                raise WinnowError(
                    f"the processes that decode images crashed more than {_MAX_CRASHES} times: "
                    "see whether there is enough memory, and whether Pillow and OpenCV are in order"
                )
            index, has_read = _STEP.unpack(step)
            if has_read:
                crashed.add(index)
            else:
                limit = index
        raise WinnowError(f"the processes that decode images end as they start: {_why_none_starts()}")


def _start(count: int, output: Output) -> Any:
    """Start loky's processes; without tasks to come they would wait for the first one."""
    executor = ProcessPoolExecutor(
        count, initializer=_initialise, initargs=(os.getpid(), output), env=_ONE_THREAD
    )
    executor.submit(os.getpid)
    return executor


def _why_none_starts() -> str:
    """The last line that a Python process writes which imports what the workers do."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import {__name__}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "they say nothing"


# --- in a worker process -----------------------------------------------------------------------


def _initialise(parent: int, output: Output) -> None:
    global _output  # noqa: PLW0603  (what a process is told once, not with every block)
    _output = output
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process decides
    nowhere = os.open(os.devnull, os.O_RDWR)  # what a library prints must not get into the progress bar
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    cv2.setNumThreads(1)  # there is a process for every core already
    warnings.simplefilter("ignore")  # what a bad file gives rise to, quarantine says better
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, however that one ended."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_SECONDS)
    os._exit(0)


def _read(
    start: int,
    payload: Payload,
    crashed: Set[int] = frozenset(),
    limit: int | None = None,
    steps: Path | None = None,
) -> BlockResult:
    """Read a block (see `blocks.read_block`), and note every step in a file where one is named."""
    if steps is None:
        return read_block(payload, start, _output)
    with steps.open("r+b", buffering=0) as file:

        def note(index: int, has_read: bool) -> None:
            file.seek(0)
            file.write(_STEP.pack(index, has_read))

        return read_block(payload, start, _output, crashed=crashed, limit=limit, watch=note)
