"""Killed in the middle of any stage, the next `dvc repro` ends as if nothing had happened."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from clones import clone, environment, lock_of, run

STAGES = ["check", "ingest", "detect_noise", "curate", "augment", "synthesize", "baseline", "train",
          "finetune", "evaluate"]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict]:
    """A clone in which nothing ran, and the lock file of another that nobody disturbed."""
    fresh = clone(tmp_path_factory.mktemp("fresh"))
    place = tmp_path_factory.mktemp("undisturbed") / "clone"
    shutil.copytree(fresh, place)
    result = run(place, "dvc", "repro", WINNOW_TRACKING="off")
    assert result.returncode == 0, result.stderr
    return fresh, lock_of(place)


def stage_processes(place: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = " ".join(process.info["cmdline"] or [])
        if process.info["cwd"] == str(place) and "-m stages." in command:
            found.append(process)
    return found


def worked(place: Path) -> float:
    """The seconds that the stage's processes have computed."""
    seconds = 0.0
    for process in stage_processes(place):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def start_until(place: Path, stage: str) -> subprocess.Popen:
    """Start `dvc repro` and come back when the stage's process has worked for a moment."""
    dvc = subprocess.Popen(
        ["dvc", "repro"], cwd=place, env=environment(WINNOW_TRACKING="off"), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = []
    for line in dvc.stdout:
        said.append(line)
        if line.startswith("Running stage") and line.split("'")[1].split(":")[-1] == stage:
            time.sleep(1.0)
            return dvc
    raise AssertionError(f"{stage} did not run:\n{''.join(said)}")


@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "dvc-alone"])
def test_killed_in_every_stage_it_ends_with_the_same_lock(tmp_path, undisturbed, whole_group: bool):
    fresh, expected = undisturbed
    place = tmp_path / "clone"
    shutil.copytree(fresh, place)
    for stage in STAGES:
        dvc = start_until(place, stage)
        if whole_group:
            os.killpg(dvc.pid, signal.SIGKILL)
        else:
            os.kill(dvc.pid, signal.SIGKILL)
        dvc.wait()
        before, deadline = worked(place), time.monotonic() + 300
        # By its own seconds: on a busy machine it may take long to notice, but does little until then.
        while stage_processes(place) and worked(place) - before < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert stage_processes(place) == [], f"{stage} went on without its parent"
    result = run(place, "dvc", "repro", WINNOW_TRACKING="off")
    assert result.returncode == 0, result.stdout + result.stderr
    assert lock_of(place) == expected
    assert not list(place.glob("**/*.partial"))
