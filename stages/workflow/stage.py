"""Turn the function of a stage into a command: arguments, errors, threads, one writer, no orphan.

``@stage`` turns the thin function of a stage into its ``main``: the whole of ``params.yaml`` is
validated first; a `WinnowError` ends in one line and exit status 2; a second run of the same stage
in this workspace waits for the first; and the process ends when DVC does, so that the next
``dvc repro`` is never the second writer of an output.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stages.errors import WinnowError
from stages.workflow import processes
from stages.workflow.params import Params, load_params
from stages.workflow.runs import EXECUTION, StageRun, execution_id, stage_run

if TYPE_CHECKING:
    import psutil

LOCKS = Path(".winnow/locks")
_SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}
_REAPERS = {"init", "systemd", "launchd", "tini", "docker-init", "dumb-init"}
_WATCH_SECONDS = 0.5

StageFunction = Callable[[Params, StageRun, argparse.Namespace], None]
AddArguments = Callable[[argparse.ArgumentParser], None]
Devices = Callable[[Params], int | Literal["auto"]]


def stage(
    name: str,
    arguments: AddArguments | None = None,
    named: Callable[[argparse.Namespace], str] | None = None,
    devices: Devices | None = None,
    tracked: Callable[[argparse.Namespace], bool] | None = None,
) -> Callable[[StageFunction], Callable[..., None]]:
    """Make a stage's function its ``main(argv=None)``.

    Parameters
    ----------
    name : the stage's module name
    arguments : adds the stage's own command line arguments, for those that have any
    named : returns the stage's name in dvc.yaml for its arguments, where a module serves more than one
    tracked : returns whether it has a run in MLflow; every stage that does not only draw has one
    devices : how many processes share its work, for a stage that can do so; docs/several-devices.md
    """

    def decorate(function: StageFunction) -> Callable[..., None]:
        @functools.wraps(function)
        def main(argv: list[str] | None = None) -> None:
            parser = argparse.ArgumentParser(
                prog=f"python -m stages.{name}",
                description=inspect.getdoc(function),
                epilog="What it does is decided in params.yaml; `dvc repro` runs it when needed.",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            if arguments is not None:
                arguments(parser)
            options = parser.parse_args(argv)
            stage_name = named(options) if named is not None else name
            title = f"{stage_name} (process {processes.rank()})" if processes.rank() else stage_name
            with clean_exit(title):
                end_with_parent()
                params = load_params()
                if devices is None and processes.world_size() > 1:
                    raise WinnowError("this stage runs in one process: start it without torchrun")
                if devices is not None and not processes.under_torchrun():
                    number = processes.count(devices(params), params.device)
                    if number > 1:
                        # An execution is named after the process that ordered the stage, and the
                        # processes that are started here would take this one for it.
                        os.environ.setdefault(EXECUTION, execution_id())
                        with only_writer(stage_name):
                            processes.start(
                                number, [f"stages.{name}", *(sys.argv[1:] if argv is None else argv)]
                            )
                        return
                _prepare(params)
                with _working(stage_name, params, tracked is None or tracked(options)) as run:
                    function(params, run, options)

        return main

    return decorate


def require_root() -> None:
    """Raise a WinnowError outside the root of the repository, where what is written would litter."""
    if not Path("dvc.yaml").is_file():
        raise WinnowError(f"there is no dvc.yaml in {Path.cwd()}: run from the root of the repository")


@contextlib.contextmanager
def clean_exit(name: str) -> Iterator[None]:
    """Print a `WinnowError` as one line and exit with status 2; leave bugs their traceback."""
    try:
        yield
    except WinnowError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


@contextlib.contextmanager
def _working(name: str, params: Params, tracked: bool) -> Iterator[StageRun]:
    """Hold the stage's lock and its MLflow run: in the first process alone, where there are several."""
    if processes.rank() > 0:
        with processes.quiet_helper():
            yield StageRun()
        return
    # Where the stage started its processes by itself, the one that waits for them holds the lock.
    lock = contextlib.nullcontext() if processes.under_start() else only_writer(name)
    with lock, stage_run(name, params) if tracked else contextlib.nullcontext(StageRun()) as run:
        yield run


def _prepare(params: Params) -> None:
    """Set the thread count that results are reproducible under, also for what is imported later."""
    from threadpoolctl import threadpool_limits

    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(params.threads)
    threadpool_limits(params.threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(params.threads)


@contextlib.contextmanager
def only_writer(name: str) -> Iterator[None]:
    """Hold the stage's lock in this workspace; wait, and say so, while another run has it.

    The operating system frees the lock when the process ends, however it ends.
    """
    from filelock import FileLock, Timeout

    LOCKS.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LOCKS / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{name}: another run of this stage is under way here; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def end_with_parent() -> None:
    """End this process when the one that ordered it (DVC, a shell, a flow, torchrun) ends.

    DVC killed by SIGKILL cannot stop its stage; the orphan would go on writing while the next
    ``dvc repro`` starts another. On Linux the kernel sends the signal; where a shell stands in
    between, and on other systems, a thread watches the ancestor.
    """
    if "DVC_ROOT" not in os.environ and not processes.under_torchrun():
        return
    import psutil

    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    ancestor = psutil.Process().parent()
    while ancestor is not None and ancestor.name() in _SHELLS:
        ancestor = ancestor.parent()
    if ancestor is None:
        return
    if ancestor.name() in _REAPERS and "dvc" not in " ".join(ancestor.cmdline()):
        os._exit(137)  # DVC had gone before we could ask: only an orphan is this one's child

    watched = [ancestor]
    # A flow killed by SIGKILL leaves DVC running in its own session: the stage ends with either.
    if os.environ.get("WINNOW_FLOW_PID", "").isdigit():
        try:
            watched.append(psutil.Process(int(os.environ["WINNOW_FLOW_PID"])))
        except psutil.NoSuchProcess:
            os._exit(137)

    def watch() -> None:
        while all(_alive(process) for process in watched):
            time.sleep(_WATCH_SECONDS)
        os._exit(137)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _alive(process: psutil.Process) -> bool:
    """Tell whether a process still runs; a zombie does not."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
