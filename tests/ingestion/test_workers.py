"""Processes that decode: what they give, and what happens when they die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from awkward import Deadly, DiesReading, Item, Listed, Prints

from stages.errors import WinnowError
from stages.ingestion import workers
from stages.ingestion.blocks import BlockResult, Output, RowFile, Shape, open_output, read_block
from stages.ingestion.source import Payload
from stages.ingestion.workers import Pool, cores

TESTS = Path(__file__).parents[1]


def output(folder: Path) -> Output:
    folder.mkdir(exist_ok=True)
    return open_output(folder, Shape(8, "rgb"))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def items(count: int, **others: object) -> list[Item]:
    listed: list[Item] = [noise(seed) for seed in range(count)]
    for name, item in others.items():
        listed[int(name.removeprefix("at"))] = item
    return listed


def read(pool: Pool, *payloads: Payload) -> list[BlockResult]:
    starts = np.cumsum([0, *(len(payload) for payload in payloads)])
    futures = [pool.submit(int(start), payload) for start, payload in zip(starts, payloads, strict=False)]
    return [pool.result(future) for future in futures]


def worker_processes() -> list[psutil.Process]:
    """The children that decode; loky's tracker of semaphores stays as long as this process."""
    return [
        child
        for child in psutil.Process().children()
        if any("popen_loky" in word for word in child.cmdline())
    ]


def ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=300)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_processes_find_what_this_one_would(tmp_path: Path) -> None:
    payloads = [Listed(items(20)), Prints(items(3)), Listed([b"words", noise(5)])]
    with Pool(2, output(tmp_path / "pool")) as pool:
        results = read(pool, *payloads)
    here = output(tmp_path / "here")
    for payload, start, result in zip(payloads, (0, 20, 23), results, strict=True):
        expected = read_block(payload, start, here)
        assert result.refused == expected.refused
        for name in ("ok", "sample_id", "pixel_key", "perceptual", "flat", "width", "height"):
            assert (getattr(result, name) == getattr(expected, name)).all()
    for name in ("squares", "thumbs"):
        assert (tmp_path / "pool" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_they_end_with_the_pool(tmp_path: Path) -> None:
    with Pool(2, output(tmp_path)) as pool:
        read(pool, Listed(items(3)))
        assert worker_processes()
    assert not worker_processes()


def test_a_pool_can_be_left_while_it_starts_and_works(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), Pool(2, output(tmp_path)) as pool:
        for start in range(20):
            pool.submit(start, Listed(items(1)))
        raise KeyboardInterrupt
    assert not worker_processes()


def test_an_item_that_kills_the_decoder_is_damaged_and_all_others_are_read(tmp_path: Path) -> None:
    deadly = Listed(items(9, at4=Deadly(), at7=Deadly()))
    with Pool(1, output(tmp_path)) as pool:
        before, result, after = read(pool, Listed(items(2)), deadly, Listed(items(3)))
    assert before.ok.all()
    assert after.ok.all()
    assert np.flatnonzero(~result.ok).tolist() == [4, 7]
    assert [(reason, detail) for _, reason, detail in result.refused] == [
        ("damaged", "the decoder crashed on it")
    ] * 2
    squares = output(tmp_path).squares.take(np.arange(14))
    assert (squares[10] == noise(8)).all()  # the last of the block, behind both
    assert (squares[11:] == np.stack([noise(seed) for seed in range(3)])).all()


def test_an_item_whose_reading_kills_the_process_ends_its_block(tmp_path: Path) -> None:
    with Pool(1, output(tmp_path)) as pool:
        result, after = read(pool, DiesReading(items(6), deadly=(3,)), Listed(items(2)))
    assert result.ok.tolist() == [True, True, True, False, False, False]
    assert {reason for _, reason, _ in result.refused} == {"unreadable"}
    assert after.ok.all()


def test_a_process_that_is_killed_for_no_fault_of_an_item_costs_nothing(tmp_path: Path) -> None:
    with Pool(1, output(tmp_path)) as pool:
        read(pool, Listed(items(1)))
        for process in worker_processes():
            process.kill()
        assert all(result.ok.all() for result in read(pool, Listed(items(3)), Listed(items(2))))


def test_too_many_crashes_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MAX_CRASHES", 1)
    with Pool(1, output(tmp_path)) as pool, pytest.raises(WinnowError, match="crashed more than 1 times"):
        read(pool, Listed(items(4, at1=Deadly(), at2=Deadly(), at3=Deadly())))


def test_processes_that_do_not_start_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no libjpeg here >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with (
        Pool(2, output(tmp_path)) as pool,
        pytest.raises(WinnowError, match="as they start: no libjpeg here"),
    ):
        read(pool, Listed(items(1)), Listed(items(1)), Listed(items(1)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    full = output(tmp_path)._replace(squares=RowFile(Path("/dev/full"), (8, 8, 3)))
    with Pool(1, full) as pool, pytest.raises(WinnowError, match="cannot be written to /dev: No space left"):
        read(pool, Listed(items(1)), Listed(items(1)))


def test_what_cannot_be_sent_is_a_bug_that_shows(tmp_path: Path) -> None:
    with Pool(1, output(tmp_path)) as pool, pytest.raises(Exception, match=r"[Pp]ickle"):
        read(pool, Listed([threading.Lock()]))


def test_a_bug_in_a_payload_shows_its_traceback(tmp_path: Path) -> None:
    with Pool(1, output(tmp_path)) as pool, pytest.raises(TypeError, match="has no len") as caught:
        pool.result(pool.submit(0, 5))
    assert "in read_block" in str(caught.value.__cause__)


def test_processes_do_not_import_the_main_program(tmp_path: Path) -> None:
    script = f"""
        import sys
        sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
        from pathlib import Path
        from awkward import Listed
        from stages.ingestion.blocks import Shape, open_output
        from stages.ingestion.workers import Pool
        with open("imported", "a") as file:
            file.write("once")
        with Pool(2, open_output(Path(), Shape(8, "rgb"))) as pool:
            assert pool.result(pool.submit(0, Listed([b"words"]))).refused
    """
    (tmp_path / "main.py").write_text(textwrap.dedent(script))
    subprocess.run([sys.executable, "main.py"], cwd=tmp_path, check=True, timeout=600)
    assert (tmp_path / "imported").read_text() == "once"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_they_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
        import sys, time
        sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
        from pathlib import Path
        from awkward import Listed
        from stages.ingestion.blocks import Shape, open_output
        from stages.ingestion.workers import Pool
        pool = Pool(2, open_output(Path(), Shape(8, "rgb")))
        assert pool.result(pool.submit(0, Listed([b"words"]))).refused
        print("ready", flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    # The second process may be on its way still; the time limit of all tests ends what never comes.
    while len(children := psutil.Process(parent.pid).children(recursive=True)) < 2:
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(timeout=300)
    assert ended(children)


def test_there_is_a_core() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
