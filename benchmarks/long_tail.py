"""What helps on a long tail? CIFAR-10 with 500 to 5 images a class, treated in several ways, over seeds.

    python -m benchmarks.long_tail --jobs 2
    python -m benchmarks.long_tail --arms none gan --seeds 0 1 --device cuda --steps 5000

The seed says which class is how rare, which images are there, and how the model starts; all arms of a
seed share them, so that differences are paired. Every arm has the same network, optimiser steps, batch
and flips and shifts in the loop, and keeps the weights of the last step: an arm with more images has no
more training. Scored on CIFAR-10's own test images. The GAN chooses its snapshots by validation images
as few and as skewed as a tenth of the training images. Each result is a line in the file of --out; what is
there with the same settings is not run again. Looks for cifar10.tar.gz in --data, WINNOW_BENCH_DATA or
../shared/data.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks.cifar_images import long_tail, read_cifar10
from benchmarks.long_tail_arms import ARMS, GANSettings, arm_settings, treated
from benchmarks.long_tail_table import table
from benchmarks.measuring import ROOT, bench_data
from benchmarks.results import Row, read_results
from stages.workflow.params import PARAMS_FILE, load_params
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from stages.learning.names import Device

RESULTS = ROOT / ".winnow/bench/long_tail.jsonl"
_GANS = ROOT / ".winnow/bench/long_tail"
_EPOCHS = 10  # only how often the loss is looked at


@dataclass(frozen=True)
class Settings:
    """Of the data and of every arm's training.

    Attributes
    ----------
    largest, ratio : training images of the largest class, and of how many times fewer of the smallest
    steps, batch_size, learning_rate, label_smoothing : of every arm's training
    model : a name of `stages.learning.networks.catalogue`
    development : scored on images of the training set: to choose settings by
    device : bf16 and fp32 give other figures, and other devices other roundings
    """

    largest: int = 500
    ratio: float = 100.0
    steps: int = 1300
    batch_size: int = 64
    learning_rate: float = 0.005
    label_smoothing: float = 0.05
    model: str = "small_cnn"
    development: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Plan:
    """All that results follow from, beside arm and seed: settings, the GAN's, and the gate's limits."""

    archive: Path
    settings: Settings
    gan: GANSettings
    gate: dict[str, float]

    def key(self, arm: str) -> dict[str, Any]:
        """What the results of an arm are found again by, as plain JSON values."""
        content = asdict(self.settings) | {"arm": arm_settings(ARMS[arm], self.gan, self.gate)}
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain


def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, and print the table."""
    options = _parser().parse_args(argv)
    with clean_exit("long_tail"):
        data = options.data or bench_data()
        archive = None if data is None else data / "cifar10.tar.gz"
        if archive is None or not archive.is_file():
            print("long_tail: skipped: no cifar10.tar.gz in --data, WINNOW_BENCH_DATA or ../shared/data")
            return
        plan = Plan(
            archive,
            Settings(**{name: getattr(options, name) for name in asdict(Settings())}),
            GANSettings(**{name: getattr(options, f"gan_{name}") for name in asdict(GANSettings())}),
            load_params(ROOT / PARAMS_FILE).synthesize.gate.model_dump(),
        )
        measure(plan, options.arms, options.seeds, options.out, options.jobs)
        print("\n" + table(finished(options.out, plan), options.arms, options.seeds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_tail",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="the folder with cifar10.tar.gz")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each; default 1")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default {RESULTS.relative_to(ROOT)}")
    defaults = asdict(Settings()) | {f"gan_{name}": value for name, value in asdict(GANSettings()).items()}
    for name, value in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true", help="score on images of the training set")
        else:
            parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")
    return parser


def measure(plan: Plan, arms: Sequence[str], seeds: Sequence[int], out: Path, jobs: int) -> None:
    """Run each arm with each seed that is not in `out` yet, seed by seed, and append a line a result."""
    read_cifar10(plan.archive)  # decoded once, before several processes would all do it
    done = {(row["arm"], row["seed"]) for row in finished(out, plan)}
    wanted = [
        (seed, [arm for arm in group if (arm, seed) not in done]) for seed in seeds for group in _groups(arms)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool, out.open("a", encoding="utf-8") as file:
        running = [pool.submit(_run_all, plan, group, seed) for seed, group in wanted if group]
        for rows in as_completed(running):
            for row in rows.result():
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(
                    f"seed {row['seed']}  {row['arm']:30} balanced accuracy {row['balanced_accuracy']:.4f}  "
                    f"worst recall {row['worst_recall']:.3f}  {row['seconds']:.0f} s",
                    flush=True,
                )


def _groups(arms: Sequence[str]) -> list[list[str]]:
    """Arms that one process runs: each by itself, but those of the GAN, which train it once, together."""
    with_gan = [arm for arm in arms if ARMS[arm].make == "gan"]
    return [[arm] for arm in arms if arm not in with_gan] + ([with_gan] if with_gan else [])


def _run_all(plan: Plan, arms: Sequence[str], seed: int) -> list[Row]:
    return [run(plan, arm, seed) for arm in arms]


def run(plan: Plan, arm: str, seed: int) -> Row:
    """One result: the long tail of the seed, treated by the arm, trained on and scored."""
    import torch

    from stages.learning.loop import fit
    from stages.learning.models import build_model, pixel_statistics
    from stages.learning.networks.layers import ModelSpec
    from stages.learning.prediction import predict
    from stages.learning.recipe import Recipe

    torch.set_num_threads(1)
    start = time.perf_counter()
    settings, device = plan.settings, cast("Device", plan.settings.device)
    tail = long_tail(
        read_cifar10(plan.archive),
        largest=settings.largest,
        ratio=settings.ratio,
        seed=seed,
        development=settings.development,
    )
    keep_in = _GANS / f"gan-{seed}{'-development' if settings.development else ''}"
    made = treated(tail, ARMS[arm], plan.gan, plan.gate, seed=seed, device=device, keep_in=keep_in)
    data = made.view
    # Of the real images, whatever was made: arms differ in what is trained on, not in the scale of it.
    spec = ModelSpec(
        settings.model, data.classes, data.images.shape[1:], *pixel_statistics(tail.train.images)
    )
    recipe = Recipe(
        epochs=min(_EPOCHS, settings.steps),
        steps_per_epoch=max(1, settings.steps // _EPOCHS),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        label_smoothing=settings.label_smoothing,
        loss=ARMS[arm].loss,
        shift=2,
        flip=True,
    )
    model = build_model(spec, seed=seed)
    fit(model, data, recipe, seed=seed, device=device, description="")
    probabilities, _ = predict(model, tail.test.images, device, "auto")
    hits = probabilities.argmax(1) == tail.test.labels
    recalls = np.bincount(tail.test.labels, weights=hits) / tail.test.class_counts
    order = np.argsort(-tail.train.class_counts)
    return {
        "arm": arm,
        "seed": seed,
        "settings": plan.key(arm),
        "balanced_accuracy": float(recalls.mean()),
        "worst_recall": float(recalls.min()),
        "recalls": {data.classes[label]: float(recalls[label]) for label in order},
        "real": {data.classes[label]: int(tail.train.class_counts[label]) for label in order},
        "made": made.made,
        "decisions": made.decisions,
        "seconds": round(time.perf_counter() - start, 1),
    }


def finished(path: Path, plan: Plan) -> list[Row]:
    """The results in the file that were made by this plan."""
    return read_results(path, lambda row: row["arm"] in ARMS and row["settings"] == plan.key(row["arm"]))


if __name__ == "__main__":
    main()
