"""Several processes for one stage."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny_repo import environment

from stages.errors import WinnowError
from stages.workflow import processes

# `python start.py NUMBER`: job.py in so many processes.
START = (
    "import sys; from stages.workflow import processes; processes.start(int(sys.argv[1]), ['job', 'given'])"
)
JOB = """
import os, pathlib, sys, time
from stages.workflow import processes
from stages.workflow.stage import end_with_parent
end_with_parent()
assert sys.argv[1:] == ["given"] and processes.under_torchrun() and processes.under_start()
pathlib.Path(f"pid{processes.rank()}").write_text(str(os.getpid()))
"""


def starter(folder: Path, job: str, number: int = 2) -> subprocess.Popen:
    (folder / "start.py").write_text(START)
    (folder / "job.py").write_text(JOB + job)
    return subprocess.Popen(
        [sys.executable, "start.py", str(number)], cwd=folder, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def written(path: Path, seconds: float = 600.0) -> int:
    deadline = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(path.read_text())


def gone(pid: int, seconds: float = 300.0) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_the_error_of_one_process_ends_all_with_its_status_and_says_nothing_besides(tmp_path: Path):
    job = """
if processes.rank() == 1:
    while not pathlib.Path("pid0").exists() or not pathlib.Path("pid0").read_text():
        time.sleep(0.05)  # on a busy machine the other one would end before it said who it is
    print("mine", file=sys.stderr)
    sys.exit(2)
time.sleep(1000)
"""
    process = starter(tmp_path, job)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (2, "", "mine\n")
    assert gone(written(tmp_path / "pid0"))


# In both, process 1 has had its error, and all of its grace, before the first is anywhere.
MISTAKEN = """
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit
processes._GRACE_SECONDS = 0.0
with clean_exit(f"process {processes.rank()}"):
    if processes.rank() == 1:
        with processes.quiet_helper():
            pathlib.Path("wrong").touch()
            raise WinnowError("mine")
    while not pathlib.Path("wrong").exists():
        time.sleep(0.05)
    time.sleep(1)
"""


def test_what_is_wrong_in_all_is_said_by_the_first_however_late_it_comes(tmp_path: Path):
    process = starter(tmp_path, MISTAKEN + "    raise WinnowError('ours')")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (2, "", "process 0: ours\n")


def test_what_is_wrong_in_one_process_is_said_by_it_once_the_first_waits_for_it(tmp_path: Path):
    waits = """
    from stages.learning.parallel import joined
    with joined("cpu"):
        print("has joined")
"""
    process = starter(tmp_path, MISTAKEN + waits)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (2, "", "process 1: mine\n")


@pytest.mark.slow
def test_a_process_that_was_killed_is_named(tmp_path: Path):
    job = "os.kill(os.getpid(), 9) if processes.rank() == 1 else time.sleep(1000)"
    process = starter(tmp_path, job)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGKILL
    assert err == "process 1 of 2 was ended by SIGKILL\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_signals_to_the_one_that_waits_end_all(tmp_path: Path, sent: signal.Signals):
    process = starter(tmp_path, "time.sleep(1000)")
    pids = [written(tmp_path / f"pid{rank}") for rank in range(2)]
    process.send_signal(sent)
    assert process.wait(300) == -sent
    process.communicate()
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("devices", "device", "expected"),
    [(1, "auto", 1), (3, "cpu", 3), ("auto", "cpu", 1), ("auto", "auto", 4), (2, "auto", 2), (4, "cuda", 4)],
)
def test_as_many_processes_as_asked_for_or_gpus(devices, device, expected: int, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes.count(devices, device) == expected


def test_more_gpus_than_there_are_is_a_users_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(WinnowError, match=r"train\.devices = 5, but this machine has 4 GPU"):
        processes.count(5, "auto")


def test_a_helper_prints_nothing_and_raises_its_own_errors_late(monkeypatch, capsys):
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.0)
    with pytest.raises(WinnowError, match="mine"), processes.quiet_helper():
        print("heard by nobody")
        raise WinnowError("mine")
    with pytest.raises(SystemExit), processes.quiet_helper():
        raise processes.ProcessGoneError("the first's")
    print("heard")
    assert capsys.readouterr() == ("heard\n", "")
