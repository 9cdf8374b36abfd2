import os
import sys
import threading
from pathlib import Path

import pytest
from tiny_repo import change_parameter, dvc, ran

from flows.workspace import Workspace, stage_environment, workspace_lock
from stages.errors import WinnowError


def test_python_of_the_stages_is_this_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_STAGE", "outer")
    env = stage_environment({"A": "b"})
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert env["A"] == "b"
    assert "DVC_STAGE" not in env


def test_only_one_flow_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with workspace_lock(0, said.append):
            entered.set()
            leave.wait(600)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(600)
    with pytest.raises(WinnowError, match="another flow was still at work"), workspace_lock(0.1, said.append):
        pass
    assert len(said) == 1
    leave.set()
    thread.join()
    with workspace_lock(0.1, said.append):
        pass
    assert len(said) == 1


def test_what_dvc_did_with_a_stage_is_told_apart(tiny: Path):
    assert dvc(tiny, "repro", "first").returncode == 0
    workspace = Workspace(1, {})
    heard: list[str] = []
    assert workspace.stale("second")
    assert workspace.reproduce("second", heard.append).result == "ran"
    assert not workspace.stale("second")
    assert "> python stage.py second" in heard
    assert workspace.reproduce("second", heard.append).result == "cached"
    change_parameter(tiny, "epochs: 40", "epochs: 41")
    assert workspace.reproduce("second", heard.append).result == "ran"
    change_parameter(tiny, "epochs: 41", "epochs: 40")
    ran(tiny)
    assert workspace.reproduce("second", heard.append).result == "restored"
    assert ran(tiny) == []


@pytest.mark.parametrize(
    ("trouble", "message", "mistake"),
    [
        ("mistake", "first failed (exit status 2): first: the input is wrong", True),
        ("fail", "first failed (exit status 1): out of memory", False),
    ],
)
def test_a_failure_says_the_stage_the_status_and_its_last_words(
    tiny: Path, trouble: str, message: str, mistake: bool
):
    (tiny / "data/raw/used").write_text("x")
    (tiny / "trouble/first").write_text(trouble)
    outcome = Workspace(1, {}).reproduce("first", lambda _: None)
    assert (outcome.result, outcome.message, outcome.mistake) == ("failed", message, mistake)
