"""Images a second of the training loop, beside a loop over image files and one over tensors in memory.

    python -m benchmarks.training_speed
    python -m benchmarks.training_speed --threads 1
    python -m benchmarks.training_speed --images 50000 --epochs 10 --seeds 5

The same small CNN on CIFAR-10 (the first images of each class), with the same starting weights, batches,
optimiser, schedule, clipping, shifts and flips, in three loops:

- `files`: `ImageFolder` of PNG files, `DataLoader` and torchvision's transforms, in fp32, with as many
  workers as are fastest here;
- `bare`: tensors in memory, the transforms as operations on whole batches, bf16 where the hardware has it,
  channels-last, a fused optimiser, and nothing else;
- `ours`: `stages.learning.loop.fit` with the precision `auto`.

They take turns epoch by epoch on the same cores, as many as there are threads, and each turn gives a pair
of ratios: printed are the medians, and the quarters of the pairs around them. Then each is scored on the
10,000 test images. Differences in accuracy are paired by seed; one seed's is a point or two of chance, so
the interval says more than the mean. Looks for cifar10.tar.gz in WINNOW_BENCH_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from benchmarks.measuring import ROOT, bench_data
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from benchmarks.training_sides import Task
    from stages.learning.models import Classifier

_PLACE = ROOT / ".winnow/bench/training_speed"
_SIDES = ("files", "bare", "ours")
_SHIFT = 2  # pixels
_WORKERS = (0, 1, 2)
_T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}  # Student's t by number of seeds


@dataclass
class Results:
    """Seconds of each epoch, and accuracy of each seed, by side."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in _SIDES})
    accuracy: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in _SIDES})


def main(argv: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch, and cores for all; default 2")
    parser.add_argument("--images", type=int, default=10_000, help="training images; default 10000")
    parser.add_argument("--epochs", type=int, default=6, help="default 6")
    parser.add_argument("--seeds", type=int, default=3, help="how many; default 3")
    parser.add_argument("--batch-size", type=int, default=128, help="default 128")
    parser.add_argument("--workers", type=int, help="of the DataLoader; default: the fastest of 0, 1, 2")
    options = parser.parse_args(argv)
    with clean_exit("training_speed"):
        _take_cores(options.threads)
        print_table(measure(options), options)


def measure(options: argparse.Namespace) -> Results:
    """Train each side with each seed, epoch by epoch in turn."""
    from benchmarks.cifar_images import read_cifar10
    from benchmarks.training_sides import Task, write_files
    from stages.learning.prediction import predict
    from stages.learning.recipe import Recipe

    folder = bench_data()
    if folder is None or not (folder / "cifar10.tar.gz").is_file():
        raise WinnowError("there is no cifar10.tar.gz in WINNOW_BENCH_DATA or ../shared/data: put it there")
    data = read_cifar10(folder / "cifar10.tar.gz")
    each = options.images // len(data.classes)
    rows = np.concatenate([np.flatnonzero(data.labels == label)[:each] for label in range(len(data.classes))])
    place = _PLACE / str(len(rows))
    write_files(data, rows, place)
    recipe = Recipe(
        epochs=options.epochs,
        steps_per_epoch=len(rows) // options.batch_size,
        batch_size=options.batch_size,
        learning_rate=0.005,
        shift=_SHIFT,
        flip=True,
    )
    task = Task(data.images[rows], data.labels[rows], data.classes, place, recipe)
    workers = _fastest_workers(task) if options.workers is None else options.workers
    print(f"DataLoader with {workers} workers", flush=True)
    results = Results()
    with tqdm(total=options.seeds * options.epochs, unit="epoch") as bar:
        for seed in range(options.seeds):
            for side, model in _in_turns(task, seed, workers, results, bar.update).items():
                probabilities, _ = predict(model, data.test_images, "cpu")
                results.accuracy[side].append(float((probabilities.argmax(1) == data.test_labels).mean()))
    return results


def _in_turns(
    task: Task, seed: int, workers: int, results: Results, done: Callable[[], object]
) -> dict[str, Classifier]:
    """The models of all sides, whose epochs were trained in turn: the others' while ours waits."""
    from benchmarks.training_sides import bare, files, ours

    others = {"files": files(task, seed, workers), "bare": bare(task, seed)}
    models: dict[str, Classifier] = {}
    start = time.perf_counter()

    def turn() -> None:
        nonlocal start
        results.seconds["ours"].append(time.perf_counter() - start)
        for side, epochs in others.items():
            began = time.perf_counter()
            models[side] = next(epochs)
            results.seconds[side].append(time.perf_counter() - began)
        done()
        start = time.perf_counter()

    models["ours"] = ours(task, seed, turn)
    for epochs in others.values():
        epochs.close()  # and with them the loader's workers
    return models


def print_table(results: Results, options: argparse.Namespace) -> None:
    """Images a second and accuracy of each side, and the ratios of ours to the others."""
    images = options.images // options.batch_size * options.batch_size
    print(f"{'':8}{'img/s':>8}{'accuracy':>10}   {'ours / it':>10}{'quarters':>16}{'ours - it, points':>28}")
    for side in _SIDES:
        seconds, accuracy = results.seconds[side], results.accuracy[side]
        row = f"{side:8}{images / statistics.median(seconds):>8.0f}{statistics.mean(accuracy):>10.4f}"
        if side != "ours":
            ratios = [its / own for its, own in zip(seconds, results.seconds["ours"], strict=True)]
            low, high = np.quantile(ratios, [0.25, 0.75])
            row += f"   {statistics.median(ratios):>10.3f}{f'{low:.3f} to {high:.3f}':>16}"
            row += f"{_difference(results.accuracy['ours'], accuracy):>28}"
        print(row)


def _difference(own: list[float], other: list[float]) -> str:
    """The mean of paired differences in points of accuracy, and its 95 % interval."""
    points = [100 * (one - its) for one, its in zip(own, other, strict=True)]
    mean = statistics.mean(points)
    if len(points) not in _T95:
        return f"{mean:+.2f}"
    reach = _T95[len(points)] * statistics.stdev(points) / len(points) ** 0.5
    return f"{mean:+.2f} ({mean - reach:+.2f} to {mean + reach:+.2f})"


def _fastest_workers(task: Task) -> int:
    """With how many workers the loop over files is fastest, by the second of two short epochs each."""
    from benchmarks.training_sides import files

    short = replace(task, recipe=replace(task.recipe, epochs=2, steps_per_epoch=20))
    taken = {}
    for workers in _WORKERS:
        epochs = files(short, 0, workers)
        next(epochs)
        start = time.perf_counter()
        next(epochs)
        taken[workers] = time.perf_counter() - start
        epochs.close()
    return min(_WORKERS, key=lambda workers: taken[workers])


def _take_cores(threads: int) -> None:
    """So many threads, on as many cores: workers of the DataLoader share them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
