"""Seconds and peak memory of all that a pipeline does with its images, from 10,000 to a million of them.

    python -m benchmarks.gpu.growth
    python -m benchmarks.gpu.growth --device cpu --sizes 10000 100000 --costs "noise rule" ledger

Images are synthetic, 32×32, RGB. Each cost is measured at each size in a process of its own, with its inputs
made and its libraries loaded before: what is told is what the cost itself takes beside its inputs.

- seconds: of the work alone, the device waited for;
- host: most memory of the process's own while it works, less what it had before (pages of mapped files do
  not count: the system takes them back when it needs them). Looked at every five milliseconds: shorter peaks
  are missed;
- device: most memory that torch held there for tensors, the images included;
- growth: the exponent between the two largest sizes; 1 is linear.

A size is left out whose time, foreseen from the smaller ones, does not fit what is left of `--minutes`. The
smallest size comes first for all costs, then the next. An H100 with 16 cores should take seven minutes: the
million takes some five of them, of which the search for near-duplicates and the graph of neighbours, both on
the CPU, take most, and ResNet-18's epoch three quarters of one. Each result is a line in the file of --out;
what is there is not measured again (after a change of the code give another). `all issues` is measured where
it is asked for and cleanlab is there.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.growth_costs import COSTS, IMAGE_BYTES, Job
from benchmarks.gpu.machine import Span, describe, make_parser, measured, open_device
from benchmarks.gpu.series import as_key, keep
from benchmarks.results import Row, read_results
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from stages.learning.names import Device

RESULTS = Path(".winnow/bench/gpu/growth.jsonl")
SIZES = (10_000, 100_000, 1_000_000)
_LOOK_SECONDS = 0.005
_ENDING_SECONDS = 10  # in which a process that is done may put away its things
_USUAL = 1.2  # exponent that is expected of a cost whose growth is not known yet

Rows = dict[tuple[str, int], Row]  # by cost and number of images


def main(argv: list[str] | None = None) -> None:
    """Measure what is not in the file of results yet, and print the table."""
    options = _parser().parse_args(argv)
    with clean_exit("growth"):
        end = time.monotonic() + 60 * options.minutes
        costs, sizes = _wanted(options.costs), sorted(set(options.sizes))
        if sizes[0] < 100:
            raise WinnowError(f"{sizes[0]} images are too few: --sizes must be 100 or more")
        name, device = open_device(options)
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        print(f"host: {_cores()} cores, OMP_NUM_THREADS {threads}", flush=True)
        facts = {"machine": describe(device), "threads": threads, "batch_size": options.batch_size}
        rows, left_out = measure(costs, sizes, facts, name, options.out, end)
        print("\n" + table(rows, costs, sizes, options.batch_size))
        for note in left_out:
            print(f"note: {note}")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("growth", __doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), help="images; default 10000 100000 1000000"
    )
    parser.add_argument("--costs", nargs="+", choices=tuple(COSTS), help="default: all that need no more")
    parser.add_argument("--batch-size", type=int, default=512, help="of training; default 512")
    parser.add_argument("--minutes", type=float, default=9, help="to end within; default 9")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"of the results; default {RESULTS}")
    return parser


def _cores() -> int | None:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _wanted(names: Sequence[str] | None) -> list[str]:
    """The costs to measure; a WinnowError for one that this machine lacks a library for."""
    if names is None:
        return [name for name, cost in COSTS.items() if cost.needs is None]
    for name in names:
        needed = COSTS[name].needs
        if needed is not None and importlib.util.find_spec(needed) is None:
            raise WinnowError(f"{name!r} needs {needed}, which is not installed: leave it out of --costs")
    return list(names)


def measure(
    costs: Sequence[str], sizes: Sequence[int], facts: Row, device: Device, out: Path, end: float
) -> tuple[Rows, list[str]]:
    """A row for each cost and size that fits the time or is in `out`; and why others are not there.

    Parameters
    ----------
    facts : what a result is found again by, beside cost and size
    end : on the clock of `time.monotonic`
    """
    rows: Rows = {}
    left_out = []
    for images in sizes:
        for cost in costs:
            key = as_key(**facts, cost=cost, images=images)
            found = read_results(out, lambda row, key=key: row["key"] == key)  # type: ignore[misc]
            if found:
                rows[cost, images] = found[-1]
                continue
            left, expected = end - time.monotonic(), foresee(rows, cost, images)
            if expected > left:
                left_out.append(
                    f"{cost}, {images:,}: left out, some {expected:.0f} s of {max(left, 0):.0f} left"
                )
                continue
            row = in_own_process(cost, images, facts["batch_size"], device, left)
            if "failed" in row:
                left_out.append(f"{cost}, {images:,}: {row['failed']}")
                continue
            rows[cost, images] = {"key": key, **row}
            keep(out, rows[cost, images])
            print(f"{cost}, {images:,} images: {row['seconds']:.2f} s", flush=True)
    return rows, left_out


def foresee(rows: Rows, cost: str, images: int) -> float:
    """Seconds that a cost should take in all, from the largest size that is smaller; 0 without one."""
    smaller = sorted(size for name, size in rows if name == cost and size < images)
    if not smaller:
        return 0.0
    last, times = rows[cost, smaller[-1]], images / smaller[-1]
    exponent = max(1.0, growth(rows, cost, smaller) or _USUAL)
    start = last["wall"] - last["prepared"] - last["seconds"]
    return float(start + last["prepared"] * times + last["seconds"] * times**exponent)


def growth(rows: Rows, cost: str, sizes: Sequence[int]) -> float | None:
    """The exponent of seconds between the two largest of the sizes that are there; None for fewer."""
    there = [size for size in sorted(sizes) if (cost, size) in rows]
    if len(there) < 2:
        return None
    before, after = (rows[cost, size]["seconds"] for size in there[-2:])
    return math.log(max(after, 1e-9) / max(before, 1e-9)) / math.log(there[-1] / there[-2])


def in_own_process(cost: str, images: int, batch_size: int, device: Device, limit: float) -> Row:
    """Measure in a new process; it is ended after `limit` seconds.

    Returns
    -------
    `seconds`, `prepared`, `wall` (seconds from start to end), `host_bytes` and `device_bytes`; or `failed`,
    why there are none.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used CUDA cannot
    ours, theirs = context.Pipe(duplex=False)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="winnow-growth-") as place:
        job = Job(images, batch_size, device, Path(place))
        process = context.Process(target=_measure_here, args=(cost, job, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the line
        try:
            if not ours.poll(max(limit, 1.0)):
                return {"failed": f"ended after {limit:.0f} s: --minutes were over"}
            row: Row = ours.recv()
            process.join(_ENDING_SECONDS)
        except EOFError:
            process.join()
            return {"failed": f"its process ended with status {process.exitcode}: was memory too small?"}
        finally:
            process.kill()
            process.join()
    return row if "failed" in row else {**row, "wall": time.monotonic() - start}


def _measure_here(cost: str, job: Job, answers: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answers.send(_measure(cost, job))
    except Exception as error:  # the other costs are worth their figures
        what = " ".join(str(error).split())[:200]
        answers.send({"failed": f"failed: {type(error).__name__}: {what}"})


def _end_with_parent() -> None:
    """A command that was killed leaves nothing behind that goes on computing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(cost: str, job: Job) -> Row:
    start = time.perf_counter()
    work = COSTS[cost].prepare(job)
    gc.collect()
    prepared = time.perf_counter() - start
    with host_peak() as host, _measured(job.device if COSTS[cost].on_device else None) as span:
        result = work()
    del result  # held till here: what a cost gives back is part of what it takes
    return {
        "seconds": span.seconds,
        "prepared": prepared,
        "host_bytes": host.bytes,
        "device_bytes": span.peak_bytes,
    }


@contextmanager
def _measured(device: str | None) -> Iterator[Span]:
    """`machine.measured`; without a device, without loading torch."""
    if device is not None:
        import torch

        with measured(torch.device(device)) as span:
            yield span
        return
    span, start = Span(), time.perf_counter()
    yield span
    span.seconds = time.perf_counter() - start


@dataclass
class Peak:
    """Memory of the process's own at most, over what it was at first."""

    bytes: int = 0


@contextmanager
def host_peak() -> Iterator[Peak]:
    """Watch what the process holds, without pages of mapped files, while something is done within."""
    import psutil

    process, peak, over = psutil.Process(), Peak(), threading.Event()

    def own() -> int:
        memory = process.memory_info()
        return int(memory.rss - getattr(memory, "shared", 0))

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            peak.bytes = max(peak.bytes, own() - before)

    before = own()
    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield peak
    finally:
        peak.bytes = max(peak.bytes, own() - before)
        over.set()
        watch.join()


def table(rows: Rows, costs: Sequence[str], sizes: Sequence[int], batch_size: int) -> str:
    """A line a cost: seconds, host and device memory at each size, and how the seconds grow."""
    head = f"{'':20}" + "".join(f"{f'{size:,} images':>30}" for size in sizes)
    own = f"{'their pixels, MB':20}" + "".join(f"{size * IMAGE_BYTES / 1e6:>30,.0f}" for size in sizes)
    units = f"{'':20}" + f"{'seconds':>12}{'host MB':>9}{'dev. MB':>9}" * len(sizes) + f"{'growth':>9}"
    lines = [f"one process a cell, batches of {batch_size} in training", head, own, units]
    for cost in costs:
        cells = "".join(_cell(rows.get((cost, size))) for size in sizes)
        exponent = growth(rows, cost, sizes)
        lines.append(f"{cost:20}{cells}{'–' if exponent is None else f'{exponent:.2f}':>9}")
    return "\n".join(lines)


def _cell(row: Mapping[str, float] | None) -> str:
    if row is None:
        return f"{'–':>12}{'–':>9}{'–':>9}"
    return f"{row['seconds']:>12.3f}{row['host_bytes'] / 1e6:>9,.0f}{row['device_bytes'] / 1e6:>9,.0f}"


if __name__ == "__main__":
    main()
