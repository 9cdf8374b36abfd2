"""How a stage behaves as a process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_repo import environment

from stages.errors import WinnowError
from stages.workflow.stage import clean_exit, only_writer, stage


def gone(pid: int, seconds: float = 300.0) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def wait_for(path: Path, seconds: float = 300.0) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text()


def test_a_users_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended, clean_exit("train"):
        raise WinnowError("no images\nin   data/raw")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "train: no images in data/raw\n"


def test_an_interrupt_is_status_130_and_a_bug_keeps_its_traceback():
    with pytest.raises(SystemExit) as ended, clean_exit("train"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    with pytest.raises(ZeroDivisionError), clean_exit("train"):
        _ = 1 / 0


def test_main_validates_everything_before_the_function_runs(workspace: Path, capsys):
    called = []

    @stage("train")
    def main(params, run, options):
        """Train."""
        called.append(params.train.epochs)

    main([])
    assert called == [40]
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("label_noise: 0.2", "label_noise: 2"))
    with pytest.raises(SystemExit) as ended:
        main([])  # a section of another stage is wrong: this one does not run either
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "simulate.label_noise = 2" in said[0]
    assert called == [40]


def test_a_stage_may_have_arguments_and_another_name(workspace: Path, capsys):
    def arguments(parser):
        parser.add_argument("--view", default="curated")

    @stage("train", arguments, named=lambda options: "baseline" if options.view == "raw" else "train")
    def main(params, run, options):
        """Train."""
        raise WinnowError(options.view)

    for argv, line in (([], "train: curated"), (["--view", "raw"], "baseline: raw")):
        with pytest.raises(SystemExit):
            main(argv)
        assert capsys.readouterr().err.splitlines() == [line]


def test_a_second_run_of_a_stage_waits_for_the_first(workspace: Path):
    script = (
        "import pathlib, sys, time; from stages.workflow.stage import only_writer\n"
        "with only_writer('train'):\n"
        "    pathlib.Path('held').write_text('x')\n"
        "    while not pathlib.Path('go').exists(): time.sleep(0.02)\n"
        "    time.sleep(1); pathlib.Path('done').write_text('x')"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=environment())
    try:
        wait_for(workspace / "held")
        with only_writer("curate"):
            (workspace / "go").touch()  # another stage does not wait
        with only_writer("train"):
            assert (workspace / "done").exists()
    finally:
        (workspace / "go").touch()
        process.wait(300)


STAGE = """
import os, pathlib, time
from stages.workflow.stage import end_with_parent
end_with_parent()
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(1000)
"""
PARENT = """
import subprocess, sys
subprocess.run({command}, shell={shell})
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("through_shell", [False, True])
def test_a_stage_ends_when_its_dvc_is_killed(workspace: Path, through_shell: bool):
    (workspace / "stage.py").write_text(STAGE)
    command = f"{sys.executable} stage.py; true" if through_shell else [sys.executable, "stage.py"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(command=repr(command), shell=through_shell)],
        env={**environment(), "DVC_ROOT": str(workspace)},
    )
    pid = int(wait_for(workspace / "pid"))
    assert psutil.pid_exists(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone(pid)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_stage_ends_when_its_flow_is_killed_and_dvc_is_not(workspace: Path):
    (workspace / "stage.py").write_text(STAGE)
    flow = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    env = {**environment(), "DVC_ROOT": str(workspace), "WINNOW_FLOW_PID": str(flow.pid)}
    command = [sys.executable, "-c", PARENT.format(command=[sys.executable, "stage.py"], shell=False)]
    dvc = subprocess.Popen(command, env=env)
    try:
        pid = int(wait_for(workspace / "pid"))
        os.kill(flow.pid, signal.SIGKILL)
        flow.wait()
        assert gone(pid)
        assert dvc.wait(300) == 0
    finally:
        dvc.kill()


def test_by_hand_a_stage_does_not_watch_anybody(workspace: Path):
    script = (
        "import threading; from stages.workflow.stage import end_with_parent\n"
        "end_with_parent(); print(threading.active_count())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment(), check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "1"
