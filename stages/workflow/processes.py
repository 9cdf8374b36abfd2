"""Run one stage in several processes that train together: how many, their start, and their end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from stages.errors import ProcessGoneError, WinnowError
from stages.learning.names import Device

_STARTED = "WINNOW_PROCESSES"  # set for what `start` started: the stage that waits for them holds its lock
_GRACE_SECONDS = 30.0  # for a step and the end of a process on a busy machine


def rank() -> int:
    """Return the number of this process under torchrun; 0, the one that writes, without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes torchrun started, on all machines together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def under_torchrun() -> bool:
    """Tell whether torchrun, or `start`, started this process."""
    return "LOCAL_RANK" in os.environ


def under_start() -> bool:
    """Tell whether `start` started this process."""
    return _STARTED in os.environ


def count(devices: int | Literal["auto"], device: Device) -> int:
    """Return how many processes `train.devices` asks for on this machine.

    Parameters
    ----------
    devices : GPUs, or processes on a CPU; auto: all GPUs there are, and one process on anything else
    device : `device` of params.yaml

    Raises
    ------
    WinnowError
        For more GPUs than there are, and for several processes on MPS.
    """
    if devices == 1 or (devices == "auto" and device in ("cpu", "mps")):
        return 1
    import torch

    from stages.learning.devices import choose_device

    target = choose_device(device).type
    if target == "cuda":
        available = torch.cuda.device_count()
        if devices != "auto" and devices > available:
            raise WinnowError(
                f"train.devices = {devices}, but this machine has {available} GPU(s): lower it, or "
                "device: cpu"
            )
        return available if devices == "auto" else devices
    if devices == "auto":
        return 1
    if target == "mps":
        raise WinnowError(f"train.devices = {devices} does not go with MPS: take device: cpu, or devices: 1")
    return devices


def start(number: int, arguments: Sequence[str]) -> None:
    """Run `python -m ARGUMENTS` in `number` processes of this machine that train together; wait for them.

    SIGTERM and SIGINT reach all of them, and the error of one ends all.

    Raises
    ------
    SystemExit
        With the status of the first process that failed; it has said why.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torch's report of what failed: the processes speak for themselves
    os.environ[_STARTED] = str(number)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=f"winnow-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",  # not this machine's name, which need not resolve
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, sys.executable)("-m", *arguments)
    except ChildFailedError as error:
        which, failure = error.get_first_failure()
        status = failure.exitcode
        if status < 0:
            name = signal.Signals(-status).name
            print(f"process {which} of {number} was ended by {name}", file=sys.stderr)
            status = 128 - status
        raise SystemExit(status) from None
    except SignalException as error:
        signal.signal(error.sigval, signal.SIG_DFL)
        os.kill(os.getpid(), error.sigval)


@contextlib.contextmanager
def quiet_helper() -> Iterator[None]:
    """Let a process other than the first print nothing, and leave errors to the first.

    Most errors occur in all processes alike. The first reports its error and ends, and torchrun then ends
    the others. A process that sees the first wait for it has an error of its own, and raises it. Once they
    have joined nobody can see that, but they keep step: one that runs on for some seconds raises its error.
    """
    with Path(os.devnull).open("w") as devnull, contextlib.redirect_stdout(devnull):
        try:
            yield
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except ProcessGoneError:
            time.sleep(_GRACE_SECONDS)
            raise SystemExit(2) from None
        except BaseException:
            from stages.learning.parallel import first_waits

            if not first_waits():
                time.sleep(_GRACE_SECONDS)
            raise
