"""Pytest finds the same tests whenever it looks: a run whose workers find different ones ends at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What is found goes into a file; the clock is another one. `datetime` reads it past `time`: two time zones
# that are never in the same day shift what is local, and a moment's delay the rest.
PLUGIN = """
import json, os, pathlib, time

days, clocks = int(os.environ["DAYS"]), (time.time, time.time_ns)
time.sleep(2 * bool(days))
time.time = lambda: clocks[0]() + 86400 * days
time.time_ns = lambda: clocks[1]() + 86400 * 10**9 * days


def of_now(read):
    return lambda seconds=None: read(time.time() if seconds is None else seconds)


time.localtime, time.gmtime, time.ctime = map(of_now, (time.localtime, time.gmtime, time.ctime))
strftime, asctime = time.strftime, time.asctime
time.strftime = lambda form, moment=None: strftime(form, moment or time.localtime())
time.asctime = lambda moment=None: asctime(moment or time.localtime())


def pytest_collection_finish(session):
    pathlib.Path(os.environ["FOUND"]).write_text(json.dumps([item.nodeid for item in session.items]))
"""
PLACES = [
    {"DAYS": "0", "TZ": "EAST-14", "PYTHONHASHSEED": "1"},
    {"DAYS": "400", "TZ": "WEST+12", "PYTHONHASHSEED": "2"},
]
# Tests whose ids are not the same twice, each for a reason of its own; and one with nothing against it.
UNSTEADY = """
import datetime, gzip, os, random, time
import pytest

@pytest.mark.parametrize("given", [gzip.compress(b"")])
def test_packed(given): pass

@pytest.mark.parametrize("given", [f"{time.time():.0f}"])
def test_second(given): pass

@pytest.mark.parametrize("given", [time.strftime("%Y")])
def test_year(given): pass

@pytest.mark.parametrize("given", [str(datetime.date.today())])
def test_day(given): pass

@pytest.mark.parametrize("given", [str(datetime.datetime.now(datetime.UTC))])
def test_now_in_utc(given): pass

@pytest.mark.parametrize("given", set("abcdefghij"))
def test_set(given): pass

@pytest.mark.parametrize("given", [random.random()])
def test_random(given): pass

@pytest.mark.parametrize("given", sorted({"a", "b"}))
def test_steady(given): pass
"""


def found(folder: Path, scratch: Path) -> list[list[str]]:
    """The ids of the tests in a folder, in order, as two processes see them on different days."""
    (scratch / "another_day.py").write_text(PLUGIN)
    # `-n` and the like are for the run that this is in.
    usual = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    running, files = [], [scratch / f"found-{number}.json" for number in range(len(PLACES))]
    for place, file in zip(PLACES, files, strict=True):
        own = {"FOUND": str(file), "PYTHONPATH": str(scratch), "TMPDIR": str(scratch)}
        command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
        running.append(
            subprocess.Popen(
                [*command, "-p", "another_day"],
                cwd=folder,
                env=usual | own | place,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for process in running:
        said, _ = process.communicate()
        assert process.returncode == 0, said[-4000:]
    return [json.loads(file.read_text()) for file in files]


def test_the_tests_are_the_same_ones_on_another_day_and_with_other_hashes(tmp_path: Path):
    one, other = found(ROOT, tmp_path)
    assert [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]][:5] == []
    assert one == other
    assert any("test_the_tests_are_the_same_ones" in name for name in one)


def test_ids_of_the_clock_of_hashes_and_of_chance_would_be_seen(tmp_path: Path):
    suite, scratch = tmp_path / "suite", tmp_path / "scratch"
    suite.mkdir()
    scratch.mkdir()
    (suite / "test_unsteady.py").write_text(UNSTEADY)
    one, other = found(suite, scratch)
    assert one != other
    names = {name.split("[")[0].split("::")[1] for name in one}
    alike = {name for name in names if of(name, one) == of(name, other)}
    assert (len(names), alike) == (8, {"test_steady"})


def of(name: str, ids: list[str]) -> list[str]:
    return [each for each in ids if f"::{name}[" in each]
