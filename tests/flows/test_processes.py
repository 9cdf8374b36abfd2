import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

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


def test_of_a_progress_bar_only_some_states_are_told_and_the_last():
    bar = [f"\rtrain: {step}/500".encode() for step in range(1, 501)]
    told = feed(b"start\n", b"".join(bar), b"\ndone\n")
    assert told[0] == "start"
    assert told[-2:] == ["train: 500/500", "done"]
    assert len(told) < 8


def test_run_gives_output_as_it_comes_and_the_status(tmp_path: Path):
    script = "import sys, time; print('one', flush=True); time.sleep(.6); print('two', file=sys.stderr)"
    heard: list[tuple[str, float]] = []
    status = ProcessGroups().run(
        [sys.executable, "-c", script + "; sys.exit(3)"],
        dict(os.environ),
        lambda line: heard.append((line, time.monotonic())),
    )
    assert status == 3
    assert [line for line, _ in heard] == ["one", "two"]
    assert heard[1][1] - heard[0][1] > 0.3


def test_stop_ends_the_whole_group_also_what_ignores_sigterm(tmp_path: Path):
    child = (
        "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "pathlib.Path('child').write_text(str(os.getpid())); time.sleep(100)"
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
    thread.join(20)
    assert len(result) == 1
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(StoppedError):
        groups.run([sys.executable, "-c", ""], os.environ, print)
