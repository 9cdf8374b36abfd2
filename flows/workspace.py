"""Order DVC stage by stage in the workspace, for one flow at a time."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.processes import ProcessGroups
from stages.errors import WinnowError
from stages.workflow.executions import CACHED, FAILED, RAN, RESTORED
from stages.workflow.lineage import is_stale, open_repo

LOCK = Path(".winnow/locks/workspace.lock")
_BUSY_SECONDS = 600.0  # how long another DVC may keep the paths of a stage
_BUSY_PAUSE = 5.0
_EXITED = re.compile(r"exited with (-?\d+)")


@dataclass(frozen=True)
class Outcome:
    """The result of one stage in a flow.

    Attributes
    ----------
    stage : DVC's address
    result : ran, cached, restored, failed or skipped
    seconds : wall time, waiting included
    message : of what failed, one line
    mistake : it failed with exit status 2: its input is wrong, and to try again is useless
    """

    stage: str
    result: str
    seconds: float
    message: str = ""
    mistake: bool = False


@contextmanager
def workspace_lock(patience: float, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only flow at work in this workspace; the system frees the lock however we end.

    Parameters
    ----------
    patience : seconds to wait for another flow
    say : told that there is one

    Raises
    ------
    WinnowError
        Where the other one is still at work after that time.
    """
    from filelock import FileLock, Timeout

    LOCK.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another flow is at work in this workspace; waiting up to {patience:.0f} s for it")
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise WinnowError(
                f"another flow was still at work in {Path.cwd()} after {patience:.0f} s: let it end, then "
                "run this one again"
            ) from None
    try:
        yield
    finally:
        lock.release()


def stage_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of DVC and its stages: `python` in `cmd` is this one, nothing is buffered."""
    bin_folder = str(Path(sys.executable).parent)
    env = {name: value for name, value in os.environ.items() if name not in ("DVC_STAGE", "DVC_ROOT")}
    env["PATH"] = os.pathsep.join([bin_folder, env.get("PATH", os.defpath)])
    return {**env, "PYTHONUNBUFFERED": "1", **extra}


class Workspace:
    """Brings stages up to date, from several threads.

    Parameters
    ----------
    jobs : stages that run at the same time, at most
    extra : environment variables for the stages
    """

    def __init__(self, jobs: int, extra: Mapping[str, str]) -> None:
        self.groups = ProcessGroups()
        self._jobs = threading.BoundedSemaphore(jobs)
        self._asking = threading.Lock()
        self._env = stage_environment(extra)

    def stale(self, stage: str) -> bool:
        """Tell whether the stage has to run; asked in this process, which takes milliseconds."""
        with self._asking, open_repo() as repo:
            return is_stale(repo, stage)

    def reproduce(self, stage: str, say: Callable[[str], None]) -> Outcome:
        """Let DVC run the stage, or bring its outputs back from the run cache."""
        start = time.monotonic()
        with self._jobs:
            status, output = self._repro(stage, say)
            while status != 0 and _busy(output) and time.monotonic() - start < _BUSY_SECONDS:
                say("another DVC is at work on these paths; waiting for it")
                time.sleep(_BUSY_PAUSE)
                status, output = self._repro(stage, say)
        seconds = time.monotonic() - start
        if status == 0:
            return Outcome(stage, _result(output), seconds)
        exited = _EXITED.search("\n".join(output))
        code = int(exited.group(1)) if exited else status
        reason = _reason(output)
        message = f"{stage} failed (exit status {code})" + (f": {reason}" if reason else "")
        return Outcome(stage, FAILED, seconds, message, mistake=code == 2)

    def _repro(self, stage: str, say: Callable[[str], None]) -> tuple[int, list[str]]:
        output: list[str] = []

        def on_line(line: str) -> None:
            output.append(line)
            say(line)

        # --wait-for-lock stands before the command; --single-item because the flow walks the graph.
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
        return self.groups.run(command, self._env, on_line), output


def _busy(output: list[str]) -> bool:
    return any(line.startswith("ERROR:") and "is busy" in line for line in output)


def _result(output: list[str]) -> str:
    if any("is cached - skipping run" in line for line in output):
        return RESTORED
    if any("didn't change, skipping" in line for line in output):
        return CACHED  # another DVC was faster
    return RAN


def _reason(output: list[str]) -> str:
    """Return the last line that the stage itself printed."""
    lines = [line for line in output if line and not line.startswith(("ERROR:", "Running stage", "> "))]
    return lines[-1] if lines else next((line for line in reversed(output) if line), "")
