"""Which remedy helps? CIFAR-10 with people's wrong labels, and with a long tail, over seeds.

    python -m benchmarks.remedies --jobs 2
    python -m benchmarks.remedies --tasks worst --arms cross_entropy early_learning --seeds 0 1
    python -m benchmarks.remedies --full

`aggregate` and `worst` are the labels that people gave in CIFAR-10N (9 % and 40 % wrong); `long_tail` has
100 images of the largest class for one of the smallest. Every arm of a task has the same images, network,
first weights, optimiser steps, batch, flips and shifts, and keeps the weights of the last step, so that
differences of a seed are paired. What the noise stage says (arms curated, forward_correction and
co_teaching's share) comes from its own cross-validation of the same images. Scored on CIFAR-10's own test
images. Each result is a line in the file of --out; what is there with the same settings is not run again.

--full is for a GPU: all 50,000 images, ResNet-34 for labels and ResNet-32 for the long tail, 200 epochs of
SGD, as in the papers that the design's table quotes. Looks for cifar10.tar.gz and cifar10n_labels.csv.gz in
--data, WINNOW_BENCH_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks.cifar_images import read_cifar10
from benchmarks.long_tail_table import table
from benchmarks.measuring import ROOT, bench_data
from benchmarks.remedies_arms import ARMS, BASELINE, Arm
from benchmarks.remedies_data import TASKS, Task, read_task, suspect
from benchmarks.results import Row, read_results
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from stages.learning.names import Device
    from stages.learning.recipe import Recipe

RESULTS = ROOT / ".winnow/bench/remedies.jsonl"
_EPOCHS = 6  # of a budget in steps: how often the loss is looked at


@dataclass(frozen=True)
class Settings:
    """Of every arm's training.

    Attributes
    ----------
    images : training images, of the long tail see `read_task`
    steps : of the optimiser; its product with `batch_size` is the budget
    optimiser, learning_rate, weight_decay, schedule : see `Recipe`
    model, tail_model : for wrong labels, and for the long tail
    noise_epochs : of the cross-validation that suspects labels
    development : scored on other images of the training set: settings are chosen there
    device : bf16 and fp32 give other figures, and other devices other roundings
    """

    images: int = 20000
    steps: int = 480
    batch_size: int = 128
    optimiser: str = "adamw"
    learning_rate: float = 0.005
    weight_decay: float = 0.01
    schedule: str = "one_cycle"
    model: str = "small_cnn"
    tail_model: str = "small_cnn"
    noise_epochs: int = 2
    development: bool = False
    device: str = "cpu"


FULL = Settings(
    images=50000,
    steps=78200,
    optimiser="sgd",
    learning_rate=0.1,
    weight_decay=0.005,  # decoupled: the papers' .0005, which their momentum of .9 sums up tenfold
    schedule="cosine",
    model="resnet34",
    tail_model="resnet32",
    noise_epochs=30,
    device="cuda",
)


def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, and print a table a task."""
    options = _parser().parse_args(argv)
    with clean_exit("remedies"):
        data = options.data or bench_data()
        if data is None or not (data / "cifar10.tar.gz").is_file():
            print("remedies: skipped: no cifar10.tar.gz in --data, WINNOW_BENCH_DATA or ../shared/data")
            return
        settings = FULL if options.full else Settings()
        given = {name: getattr(options, name) for name in asdict(settings)}
        settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
        wanted = [
            (task, arm, seed)
            for seed in options.seeds
            for task in options.tasks
            for arm in ARMS
            if task in ARMS[arm].tasks and (not options.arms or arm in options.arms)
        ]
        measure(data, settings, wanted, options.out, options.jobs)
        rows = finished(options.out, settings)
        for task in options.tasks:
            print(f"\n{task}\n")
            own = [row for row in rows if row["task"] == task]
            print(table(own, [arm for arm in ARMS if task in ARMS[arm].tasks], options.seeds, BASELINE))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.remedies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="the folder with the archive and the table of labels")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 to 2")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each; default 1")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--full", action="store_true", help="the size of the papers, for a GPU")
    for name, value in asdict(Settings()).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true", help="score on images of the training set")
        else:
            said = f"default {value}, with --full {getattr(FULL, name)}"
            parser.add_argument(flag, type=type(value), help=said)
    return parser


def measure(
    data: Path, settings: Settings, wanted: Sequence[tuple[str, str, int]], out: Path, jobs: int
) -> None:
    """Run each (task, arm, seed) that is not in `out` yet, and append a line a result."""
    read_cifar10(data / "cifar10.tar.gz")  # decoded once, before several processes would all do it
    done = {(row["task"], row["arm"], row["seed"]) for row in finished(out, settings)}
    groups: dict[tuple[str, int, str], list[str]] = {}
    for task, arm, seed in wanted:
        if (task, arm, seed) not in done:
            # what starts from the noise stage's answers runs in one process, which computes them once
            together = "suspects" if ARMS[arm].suspects else arm
            groups.setdefault((task, seed, together), []).append(arm)
    out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool, out.open("a", encoding="utf-8") as file:
        running = [
            pool.submit(_run_all, data, settings, task, arms, seed)
            for (task, seed, _), arms in groups.items()
        ]
        for results in as_completed(running):
            for row in results.result():
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(
                    f"seed {row['seed']}  {row['task']:10} {row['arm']:28} accuracy "
                    f"{row['balanced_accuracy']:.4f}  {row['seconds']:.0f} s",
                    flush=True,
                )


def _run_all(data: Path, settings: Settings, task: str, arms: Sequence[str], seed: int) -> list[Row]:
    import torch

    if settings.device == "cpu":
        torch.set_num_threads(1)
    read = read_task(data, task, images=settings.images, seed=seed, development=settings.development)
    return [run(read, settings, task, arm, seed) for arm in arms]


def run(task: Task, settings: Settings, name: str, arm: str, seed: int) -> Row:
    """One result: the task's images, trained on with the arm's remedy and scored."""
    from stages.learning.loop import fit
    from stages.learning.models import build_model, pixel_statistics
    from stages.learning.networks.layers import ModelSpec
    from stages.learning.prediction import predict

    start = time.perf_counter()
    device = cast("Device", settings.device)
    remedy, view, transition = ARMS[arm], task.train, None
    recipe = _recipe(settings, remedy)
    if remedy.suspects:
        found = suspect(task, settings.noise_epochs, model=settings.model, seed=seed, device=device)
        transition = found.transition
        view = found.curated if remedy.curated else view
        options = replace(recipe.loss_options, forget_rate=min(found.wrong_share, 0.9))
        recipe = replace(recipe, loss_options=options)
    model = settings.tail_model if name == "long_tail" else settings.model
    statistics = pixel_statistics(task.train.images)
    spec = ModelSpec(model, view.classes, task.train.images.shape[1:], *statistics)
    result = fit(
        build_model(spec, seed=seed),
        view,
        recipe,
        seed=seed,
        device=device,
        description="",
        transition=transition,
    )
    probabilities, _ = predict(result.model, task.test.images, device, "auto")
    hits = probabilities.argmax(1) == task.test.labels
    recalls = np.bincount(task.test.labels, weights=hits) / task.test.class_counts
    return {
        "task": name,
        "arm": arm,
        "seed": seed,
        "settings": _key(settings, arm),
        "balanced_accuracy": float(recalls.mean()),
        "worst_recall": float(recalls.min()),
        "images": len(view),
        "wrong": float((task.train.labels != task.true).mean()),
        "wrong_left": _wrong_left(task, view),
        "precision": result.precision,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _recipe(settings: Settings, arm: Arm) -> Recipe:
    from stages.learning.recipe import Recipe

    base = Recipe(
        epochs=_EPOCHS,
        steps_per_epoch=max(1, settings.steps // _EPOCHS),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        optimiser=settings.optimiser,  # type: ignore[arg-type]
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,  # type: ignore[arg-type]
        shift=2 if settings.images < FULL.images else 4,
        flip=True,
    )
    return replace(base, **arm.changes)


def _wrong_left(task: Task, view: Any) -> float:
    """Share of wrong labels among those that are trained on."""
    rows = np.array([int(name, 16) for name in view.sample_ids]) if "/" not in view.sample_ids[0] else None
    return 0.0 if rows is None else float((view.labels != task.true[rows]).mean())


def _key(settings: Settings, arm: str) -> Row:
    """What a result is found again by, as plain JSON values."""
    plain: Row = json.loads(json.dumps(asdict(settings) | {"remedy": asdict(ARMS[arm])}))
    return plain


def finished(path: Path, settings: Settings) -> list[Row]:
    """The results in the file that were made with these settings."""
    return read_results(
        path, lambda row: row["arm"] in ARMS and row["settings"] == _key(settings, row["arm"])
    )


if __name__ == "__main__":
    main()
