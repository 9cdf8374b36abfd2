"""Memory of ingestion as the number of images grows.

    python -m benchmarks.ingest_memory                        100,000 and 1,000,000 rows
    python -m benchmarks.ingest_memory --rows 10000 100000

Tiny images (8×8, grey, noise) named by a manifest with labels of 100 classes and some groups, made on
the spot and deleted afterwards: a million of them take some 4 GB of disk and a few minutes.
"""

from __future__ import annotations

import argparse
import csv
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.measuring import ingest, workspace
from stages.workflow.stage import clean_exit

_SIDE = 8
_FOLDER = 1000  # files in one folder
_CLASSES = 100


def main(argv: list[str] | None = None) -> None:
    """Make the images, ingest more and more of them, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument(
        "--place", type=Path, help="folder for the images; default: the system's temporary one"
    )
    options = parser.parse_args(argv)
    with (
        clean_exit("ingest_memory"),
        tempfile.TemporaryDirectory(prefix="winnow-bench-", dir=options.place) as temporary,
        workspace(
            Path(temporary, "workspace"), {"source": "images", "image_size": _SIDE, "color": "grey"}
        ) as place,
    ):
        make_images(place / "images", max(options.rows))
        print(f"{'rows':>12}{'peak MB':>10}{'images/s':>10}")
        peaks = []
        for rows in sorted(options.rows):
            write_manifest(place / "images" / "labels.csv", rows)
            run = ingest(place, quiet=False)
            peaks.append(run.peak_bytes)
            print(f"{rows:>12,}{run.peak_bytes / 1e6:>10,.0f}{rows / run.seconds:>10,.0f}", flush=True)
        print(f"growth from the fewest to the most: {(peaks[-1] - peaks[0]) / 1e6:,.0f} MB")


def make_images(folder: Path, count: int) -> None:
    """Write `count` different PNG files, a thousand in a folder."""
    rng = np.random.default_rng(0)
    for start in tqdm(range(0, count, _FOLDER), desc="making images", unit="folders", file=sys.stderr):
        inside = folder / f"{start // _FOLDER:05d}"
        inside.mkdir(parents=True)
        pixels = rng.integers(0, 256, (_FOLDER, _SIDE, _SIDE)).astype(np.uint8)
        for i in range(min(_FOLDER, count - start)):
            (inside / f"{start + i:07d}.png").write_bytes(_png(pixels[i]))


def _png(pixels: np.ndarray) -> bytes:
    """A grey PNG without a library's overhead: there are a million of them."""
    height, width = pixels.shape
    lines = np.zeros((height, width + 1), np.uint8)
    lines[:, 1:] = pixels
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 0)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_manifest(path: Path, rows: int) -> None:
    """A manifest of the first `rows` images; one in ten belongs to a group of five."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        for i in range(rows):
            group = f"subject {i // 50}" if i % 50 < 5 else ""
            writer.writerow([f"{i // _FOLDER:05d}/{i:07d}.png", f"class {i % _CLASSES:03d}", group])


if __name__ == "__main__":
    main()
