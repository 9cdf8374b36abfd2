"""Ingestion of an archive against the plainest loop that decodes its files.

    python -m benchmarks.ingest_speed              CIFAR-10, 60,000 small JPEG files in a .tar.gz
    python -m benchmarks.ingest_speed --rounds 5

The peer reads the same files, unpacked beforehand, in one thread: `np.asarray(Image.open(file))`.
Ingestion does what it always does: unpack, read, hash, look for duplicates and near-duplicates,
split, write the array, the tables and the data card. Peer and ingestion take turns; the ratio is
that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measuring import Run, bench_data, ingest, workspace
from stages.dataset.base import INGESTED
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

_LOOP = """
import sys, time
from pathlib import Path
import numpy as np
from PIL import Image
files = sorted(Path(sys.argv[1]).rglob("*.jpg"))
start = time.perf_counter()
for file in files:
    np.asarray(Image.open(file))
print(len(files), time.perf_counter() - start)
"""


def main(argv: list[str] | None = None) -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="of peer and ingestion each; default: 3")
    options = parser.parse_args(argv)
    with clean_exit("ingest_speed"):
        data = bench_data()
        if data is None or not (data / "cifar10.tar.gz").is_file():
            print("ingest_speed: skipped: there is no cifar10.tar.gz in WINNOW_BENCH_DATA or ../shared/data")
            return
        measure(data / "cifar10.tar.gz", options.rounds)


def measure(archive: Path, rounds: int) -> None:
    """Unpack for the peer, then take turns."""
    changes = {"source": str(archive), "image_size": 32, "color": "rgb"}
    peers: list[float] = []
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as temporary:
        unpacked = Path(temporary, "unpacked")
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        with workspace(Path(temporary, "workspace"), changes) as place:
            for number in range(rounds):
                print(f"ingest_speed: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
                images, seconds = _loop(unpacked)
                peers.append(images / seconds)
                runs.append(ingest(place))
            _check(place, images)
    _print(images, peers, runs)


def _loop(unpacked: Path) -> tuple[int, float]:
    done = subprocess.run(
        [sys.executable, "-c", _LOOP, str(unpacked)], check=True, capture_output=True, text=True
    )
    images, seconds = done.stdout.split()
    return int(images), float(seconds)


def _check(place: Path, images: int) -> None:
    """What was measured has to be right: every image there, the ready-made test split whole."""
    samples = pd.read_parquet(place / INGESTED / "samples.parquet")
    refused = pd.read_parquet(place / "reports/ingest/quarantine.parquet")
    test = samples[samples["split"] == "test"]
    if len(samples) + len(refused) != images or len(test) != sum(samples["source"].str.startswith("test/")):
        raise WinnowError(f"{len(samples)} samples and {len(refused)} in quarantine of {images} images")


def _print(images: int, peers: list[float], runs: list[Run]) -> None:
    peer = statistics.median(peers)
    rate = statistics.median(images / run.seconds for run in runs)
    command = statistics.median(images / run.command_seconds for run in runs)
    peak = max(run.peak_bytes for run in runs)
    print(f"{images:,} images, {len(runs)} rounds, medians")
    print(f"{'':34}{'images/s':>10}{'ratio':>8}")
    print(f"{'np.asarray(Image.open(file))':34}{peer:>10,.0f}{1:>8.2f}")
    print(f"{'ingest':34}{rate:>10,.0f}{rate / peer:>8.2f}")
    print(f"{'ingest, with start and imports':34}{command:>10,.0f}{command / peer:>8.2f}")
    ratios = [images / run.seconds / one for run, one in zip(runs, peers, strict=True)]
    print(f"ratio of single rounds: {np.min(ratios):.2f} to {np.max(ratios):.2f}")
    print(f"peak memory of all processes together: {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
