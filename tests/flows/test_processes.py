import itertools
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows import processes
from flows.processes import ProcessGroups, StoppedError, lines


def feed(*chunks: bytes) -> list[str]:
    """What `lines` makes of chunks that come one after another."""
    read, write = os.pipe()

    def send() -> None:
        with os.fdopen(write, "wb", buffering=0) as stream:
            for chunk in chunks:
                stream.write(chunk)
                time.sleep(0.02)

    sender = threading.Thread(target=send)
    sender.start()
    with os.fdopen(read, "rb") as stream:
        found = list(lines(stream))
    sender.join()
    return found


def test_lines_come_whole_whatever_the_chunks():
    assert feed(b"on", b"e\ntwo\r", b"\nthr\xc3", b"\xa9e") == ["one", "two", "thrée"]
    assert feed(b"a\n\n\nb\n") == ["a", "b"]
    assert feed(b"\xff\n") == ["\ufffd"]
    assert feed() == []


def test_of_a_progress_bar_only_some_states_are_told_and_the_last(monkeypatch: pytest.MonkeyPatch):
    seconds = itertools.count(100, 0.01)  # between two looks at the clock, whatever the machine is at
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    bar = [f"\rtrain: {step}/500".encode() for step in range(1, 501)]
    told = feed(b"start\n", b"".join(bar), b"\ndone\n")
    assert told[0] == "start"
    assert told[-2:] == ["train: 500/500", "done"]
    assert len(told) < 8


def test_run_gives_output_as_it_comes_and_the_status(tmp_path: Path):
    # The second line comes when the first was heard, and not at all where lines come at the end.
    script = """
import pathlib, sys, time
print("one", flush=True)
end = time.monotonic() + 300
while not pathlib.Path(sys.argv[1]).exists():
    assert time.monotonic() < end
    time.sleep(0.02)
print("two", file=sys.stderr)
sys.exit(3)
"""
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        (tmp_path / line).touch()

    command = [sys.executable, "-c", script, str(tmp_path / "one")]
    assert ProcessGroups().run(command, dict(os.environ), hear) == 3
    assert heard == ["one", "two"]


def test_stop_ends_the_whole_group_also_what_ignores_sigterm(tmp_path: Path):
    child = (
        "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "pathlib.Path('child').write_text(str(os.getpid())); time.sleep(1000)"
    )
    script = (
        f"import os, subprocess, sys; os.chdir({str(tmp_path)!r});"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    groups = ProcessGroups()
    result: list[BaseException] = []

    def run() -> None:
        try:
            groups.run(
                [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {script}"], os.environ, print
            )
        except StoppedError as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.05)
    pid = int((tmp_path / "child").read_text())
    groups.stop()
    thread.join(300)
    assert len(result) == 1
    deadline = time.monotonic() + 300
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(StoppedError):
        groups.run([sys.executable, "-c", ""], os.environ, print)
