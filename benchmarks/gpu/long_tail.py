"""CIFAR-10-LT at 100:1 on a GPU: remedies for skewed classes beside the field's figures.

    python -m benchmarks.gpu.long_tail
    python -m benchmarks.gpu.long_tail --arms mixup_deferred mixing_deferred_long --seeds 0 1 2 3 4
    python -m benchmarks.gpu.long_tail --development --arms default --l2 0.0005

12,406 training images (5,000 of the first class to 50 of the last), no validation images, and the weights of
the last step; scored on all 10,000 test images, of which there are as many of each class. ResNet-32, batches
of 128, 200 epochs of SGD (Nesterov, .1, coupled decay .0002) as in the papers, but along half a cosine.
The seed says which images are there, and how the network starts. --arms default is what the section `train`
of params.yaml does about classes; its augmented and synthetic images are not in here.

A step is small: .05 TFLOP, of which an H100 could do thousands a second, so that it waits for the launches of
some 500 kernels: 2 ms as CUDA graphs to 5 ms without, and 40 to 100 s for the 19,400 steps of a run. --jobs
runs, in processes of their own, fill the gaps of one another; seconds and memory of a run are then those of a
shared GPU. All arms with one seed cost as much as 11 runs: 5 to 8 minutes with the default --jobs 3. A run is
not started where the slowest so far would not end within --minutes; each result is a line in the file of
--out, and the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from benchmarks.cifar_images import Cifar, read_cifar10
from benchmarks.gpu.machine import ARCHIVE, data_file, describe, make_parser, measured, open_device
from benchmarks.gpu.series import Budget, add_settings, as_key, given_settings, keep, spread
from benchmarks.gpu.tail_arms import ARMS, changed, published_tail, second_plan
from benchmarks.results import Row, read_results
from stages.dataset.base import View
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from stages.learning.names import Device
    from stages.learning.recipe import Recipe

RESULTS = Path(".winnow/bench/gpu/long_tail.jsonl")
_SHOTS = {"many": slice(0, 3), "medium": slice(3, 7), "few": slice(7, None)}  # classes, by size
# Test accuracy in percent, ResNet-32, 100:1.
_FIELD = {
    "cross-entropy": 70.4,
    "cRT": 75.0,
    "DeepSMOTE": 76.7,
    "Balanced Softmax": 77.5,
    "LDAM-DRW": 77.7,
    "MAMix-DRW": 82.3,
}
_SOURCE = "BagofTricks-LT and imbalanced-DL; the latter's are of the epoch that was best on the test images"

Wanted = tuple[str, int]


@dataclass(frozen=True)
class Settings:
    """Of every arm.

    Attributes
    ----------
    largest, ratio : images of the largest class, and of how many times fewer of the smallest
    model, epochs, batch_size, learning_rate, l2, schedule, warm_up : see `Recipe`; one epoch is one pass
    development : scored on images of the training set: settings are chosen there
    """

    largest: int = 5000
    ratio: float = 100.0
    model: str = "resnet32"
    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    l2: float = 0.0002
    schedule: str = "cosine"
    warm_up: float = 0.025
    development: bool = False


@dataclass(frozen=True)
class Plan:
    """What results follow from beside arm and seed.

    Attributes
    ----------
    machine : as `machine.describe` has it
    jobs : seconds are of as many runs side by side
    """

    archive: Path
    settings: Settings
    device: Device
    machine: str
    jobs: int

    def key(self, arm: str) -> Row:
        """What the results of an arm are found again by."""
        own = {"arm": asdict(ARMS[arm]), "recipe": asdict(changed(_recipe(self.settings, 1), arm))}
        return as_key(machine=self.machine, **asdict(self.settings), **own)


def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet and fits, and print the table."""
    options = _parser().parse_args(argv)
    with clean_exit("long_tail"):
        budget = Budget(options.minutes)
        device, target = open_device(options)
        if options.jobs < 1:
            raise WinnowError(f"--jobs {options.jobs}: one process at least")
        settings = Settings(**given_settings(options, Settings()))
        archive = data_file(options, ARCHIVE)
        plan = Plan(archive, settings, device, describe(target), options.jobs)
        wanted = [(arm, seed) for seed in options.seeds for arm in options.arms]
        left = measure(plan, wanted, options.out, budget)
        print("\n" + report(finished(options.out, plan), settings))
        if left:
            print(f"\n{left} of {len(wanted)} runs did not fit into --minutes: the same command goes on")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("long_tail", __doc__)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--jobs", type=int, default=3, help="runs side by side; default 3")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole command; default 9")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default {RESULTS}")
    add_settings(parser, Settings())
    return parser


def measure(plan: Plan, wanted: Sequence[Wanted], out: Path, budget: Budget) -> int:
    """Run each (arm, seed) that is not in `out`, as long as the budget allows; how many it did not."""
    data = read_cifar10(plan.archive)  # decoded once, before several processes would all do it
    # what the images do not allow is said before processes start
    _tail(data, plan.settings, 0)
    rows = finished(out, plan)
    for row in rows:
        if row["jobs"] == plan.jobs:
            budget.took(row["seconds"], ARMS[row["arm"]].cost)
    done = {(row["arm"], row["seed"]) for row in rows}
    todo = [run for run in wanted if run not in done]
    for row in _rows(plan, todo, budget):
        budget.took(row["seconds"], ARMS[row["arm"]].cost)
        keep(out, row)
        print(
            f"seed {row['seed']}  {row['arm']:30} accuracy {row['accuracy']:.4f}  {row['seconds']:.0f} s",
            flush=True,
        )
    return len(todo)


def _rows(plan: Plan, todo: list[Wanted], budget: Budget) -> Iterator[Row]:
    """Results as they come; what the budget does not allow stays in `todo`."""
    if plan.jobs == 1:
        while (chosen := _next(todo, budget)) is not None:
            yield run(plan, *chosen)
        return
    with _processes(plan.jobs) as pool:
        running: set[Future[Row]] = set()
        while True:
            while len(running) < plan.jobs and (chosen := _next(todo, budget)) is not None:
                running.add(pool.submit(run, plan, *chosen))
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()


def _next(todo: list[Wanted], budget: Budget) -> Wanted | None:
    """The first run that would end in time, taken out of `todo`."""
    for number, (arm, _) in enumerate(todo):
        if budget.allows(ARMS[arm].cost):
            return todo.pop(number)
    return None


def _processes(jobs: int) -> Executor:
    # A process that was forked cannot use CUDA once its parent has.
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    """A parent that is killed leaves nobody on the GPU, who would slow down the next measurement."""

    def watch(parent: multiprocessing.process.BaseProcess) -> None:
        parent.join()
        os._exit(1)

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()


def run(plan: Plan, arm: str, seed: int) -> Row:
    """One result: the tail of the seed, trained on in the arm's way and scored."""
    import torch

    from stages.learning.adapting import transfer
    from stages.learning.loop import fit
    from stages.learning.models import build_model, pixel_statistics
    from stages.learning.networks.layers import ModelSpec
    from stages.learning.prediction import predict

    settings, target = plan.settings, torch.device(plan.device)
    if plan.device == "cpu" and plan.jobs > 1:
        torch.set_num_threads(1)
    train, test = _tail(read_cifar10(plan.archive), settings, seed)
    spec = ModelSpec(settings.model, train.classes, train.images.shape[1:], *pixel_statistics(train.images))
    recipe = changed(_recipe(settings, len(train)), arm)
    model, then = build_model(spec, seed=seed), ARMS[arm].then
    with measured(target) as span:
        fitted = fit(model, train, recipe, seed=seed, device=plan.device, description="")
        if then is not None:
            phases = second_plan(model, recipe, then)
            transfer(model, train, phases, seed=seed, device=plan.device, description=None)
    probabilities, _ = predict(model, test.images, plan.device, "auto")
    hits = probabilities.argmax(1) == test.labels
    recalls = np.bincount(test.labels, weights=hits) / test.class_counts
    return {
        "arm": arm,
        "seed": seed,
        "settings": plan.key(arm),
        "accuracy": float(recalls.mean()),
        "recalls": [float(recall) for recall in recalls],
        "images": len(train),
        "seconds": round(span.seconds, 2),
        "peak_bytes": span.peak_bytes,
        "jobs": plan.jobs,
        "notes": fitted.notes,
    }


def _tail(data: Cifar, settings: Settings, seed: int) -> tuple[View, View]:
    return published_tail(
        data,
        largest=settings.largest,
        ratio=settings.ratio,
        seed=seed,
        development=settings.development,
    )


def _recipe(settings: Settings, images: int) -> Recipe:
    from stages.learning.recipe import Recipe, steps_per_epoch

    return Recipe(
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch(images, settings.batch_size),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        optimiser="sgd",
        schedule=settings.schedule,  # type: ignore[arg-type]
        warm_up=settings.warm_up,
        weight_decay=0.0,
        l2=settings.l2,
        shift=4,
        flip=True,
    )


def finished(path: Path, plan: Plan) -> list[Row]:
    """The results in the file that were made with these settings on such a machine."""
    keys = {arm: plan.key(arm) for arm in ARMS}
    return read_results(path, lambda row: row["settings"] == keys.get(row["arm"]))


def report(rows: Sequence[Row], settings: Settings) -> str:
    """What was measured, beside the field's figures."""
    scored = "held-out training images" if settings.development else "test images"
    lines = ["settings: " + ", ".join(f"{name} {value}" for name, value in asdict(settings).items())]
    images = sorted({row["images"] for row in rows})
    lines += [f"training images: {', '.join(map(str, images)) or '–'}", ""]
    lines += [f"accuracy in percent on {scored}, classes counting the same; over seeds the median (least to"]
    lines += ["most). Many, medium, few: the first 3, the next 4, the last 3 classes.", ""]
    lines.append(_line("arm", "seeds", "accuracy", *_SHOTS, "seconds", "GiB", "at once"))
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if own:
            lines.append(_line(arm, str(len(own)), *_cells(own)))
    lines += ["", f"the field, ResNet-32 ({_SOURCE})."]
    lines += ["Its images are CIFAR-10's own; JPEG took points off ours, see docs/benchmarks.md."]
    lines += [f"{name:32}{figure:5.1f}" for name, figure in _FIELD.items()]
    return "\n".join(lines)


def _cells(rows: Sequence[Row]) -> list[str]:
    cells = [spread((row["accuracy"] for row in rows), 100)]
    for classes in _SHOTS.values():
        cells.append(spread((float(np.mean(row["recalls"][classes])) for row in rows), 100))
    cells.append(spread((row["seconds"] for row in rows), 1, 0))
    cells.append(spread((row["peak_bytes"] for row in rows), 2**-30))
    return [*cells, ", ".join(str(jobs) for jobs in sorted({cast("int", row["jobs"]) for row in rows}))]


def _line(first: str, *cells: str) -> str:
    return f"{first:32}{cells[0]:>5}" + "".join(f"{cell:>24}" for cell in cells[1:])


if __name__ == "__main__":
    main()
