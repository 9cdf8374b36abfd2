"""What measurements of a stage share: a workspace of their own, a process that is watched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from stages.errors import WinnowError

ROOT = Path(__file__).resolve().parent.parent
_SAMPLE_SECONDS = 0.02

# The stage in a process of its own; what it took without the start of Python and imports goes to a file.
_TIMED = """
import sys, time
from pathlib import Path
from stages import ingest
start = time.perf_counter()
ingest.main([])
Path(sys.argv[1]).write_text(str(time.perf_counter() - start))
"""


@dataclass(frozen=True)
class Run:
    """One run of the stage `ingest`.

    Attributes
    ----------
    seconds : of the stage, from its first line to its last file
    command_seconds : with the start of Python and all imports
    peak_bytes : resident memory of the process and its workers together, at most; shared pages of
        libraries count in each of them
    """

    seconds: float
    command_seconds: float
    peak_bytes: int


def bench_data() -> Path | None:
    """The folder of real data: `WINNOW_BENCH_DATA`, or `../shared/data` beside the repository."""
    place = Path(os.environ.get("WINNOW_BENCH_DATA", ROOT.parent / "shared" / "data"))
    return place if place.is_dir() else None


@contextmanager
def workspace(place: Path, changes: Mapping[str, Any]) -> Iterator[Path]:
    """An empty folder with the project's params.yaml, changed; gone afterwards.

    Parameters
    ----------
    place : of the folder
    changes : keys of the section `ingest`
    """
    shutil.rmtree(place, ignore_errors=True)
    (place / "data").mkdir(parents=True)
    for name in ("dvc.yaml", "data/splits.csv", "data/reviews.csv"):
        shutil.copy(ROOT / name, place / name)
    yaml = YAML(typ="safe")
    params = yaml.load((ROOT / "params.yaml").read_text("utf-8"))
    params["simulate"]["enabled"] = False
    params["ingest"].update(changes)
    with (place / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def ingest(place: Path, *, quiet: bool = True) -> Run:
    """Run the stage in a workspace.

    Raises
    ------
    WinnowError
        Where it fails, with its last words.
    """
    timing, log = (place / "seconds").resolve(), (place / "log").resolve()
    environment = os.environ | {"WINNOW_TRACKING": "off", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with log.open("w") as errors:
        process = psutil.Popen(
            [sys.executable, "-c", _TIMED, str(timing)],
            cwd=place,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors if quiet else None,
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, _resident(process))
            time.sleep(_SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise WinnowError(f"ingest failed: {log.read_text('utf-8').splitlines()[-1:]}")
    return Run(float(timing.read_text()), seconds, peak)


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it has just ended
    return total
