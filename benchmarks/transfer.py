"""Does transfer help where images are few? Five CIFAR-10 classes pretrain, the others have 50 images each.

    python -m benchmarks.transfer --jobs 2
    python -m benchmarks.transfer --seeds 0 1 2 --model resnet18 --device cuda --pretraining-epochs 30

The seed says which five classes are for pretraining, which images of the others there are, and how
networks start; all ways to adapt share the pretrained network of the seed, so that differences are paired.
Every way has the same optimiser steps, batch, and flips and shifts (features that are computed once know
flips alone), and keeps the weights of the last step. Scored on the test images of the five new classes.
Settings are chosen with --development, on images of the training set and with other seeds. Each result is
a line in the file of --out; what is there with the same settings is not run again, and pretrained networks
are kept in .winnow/bench/transfer. At the end head training on cached features is timed against forward
passes.
Looks for cifar10.tar.gz in --data, WINNOW_BENCH_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks.cifar_images import read_cifar10
from benchmarks.long_tail_table import paired_difference
from benchmarks.measuring import ROOT, bench_data
from benchmarks.results import Row, read_results
from benchmarks.transfer_data import Halves, halves, labelled
from stages.dataset.base import View
from stages.dataset.files import new_folder
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from stages.learning.names import Device, Precision, Transfer
    from stages.learning.networks.layers import ModelSpec
    from stages.learning.recipe import Recipe

RESULTS = ROOT / ".winnow/bench/transfer.jsonl"
_PRETRAINED = ROOT / ".winnow/bench/transfer"
ARMS = ("scratch", "feature_extraction", "probe_then_full", "gradual", "layer_wise", "full")
_OF_PRETRAINING = (
    "pretraining_images",
    "pretraining_epochs",
    "pretraining_rate",
    "model",
    "precision",
    "device",
)
_TIMED_EPOCHS, _TIMED_IMAGES, _TIMED_BATCH = 4, 5000, 128


@dataclass(frozen=True)
class Settings:
    """Of pretraining, and of every way to adapt.

    Attributes
    ----------
    pretraining_images, pretraining_epochs, pretraining_rate : of the five classes together; its batch is 128
    images : of each new class
    epochs, batch_size : of the adaptation; an epoch is a pass over the new images
    head_epochs : how many of the epochs are the head's by itself, in the modes that begin with it
    scratch_rate, learning_rate : from scratch, and of the heads of all modes
    backbone_lr_factor, layer_decay : as in params.yaml
    model : a name of `stages.learning.networks.catalogue`
    development : scored on images of the training set: to choose settings by
    precision, device : bf16 and fp32 give other figures, and other devices other roundings
    """

    pretraining_images: int = 25_000
    pretraining_epochs: int = 6
    pretraining_rate: float = 0.005
    images: int = 50
    epochs: int = 40
    batch_size: int = 32
    head_epochs: int = 10
    scratch_rate: float = 0.002
    learning_rate: float = 0.005
    backbone_lr_factor: float = 0.1
    layer_decay: float = 0.6
    model: str = "small_cnn"
    development: bool = False
    precision: str = "auto"
    device: str = "auto"


def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, print the table, and time the training of heads."""
    options = _parser().parse_args(argv)
    with clean_exit("transfer"):
        data = options.data or bench_data()
        archive = None if data is None else data / "cifar10.tar.gz"
        if archive is None or not archive.is_file():
            print("transfer: skipped: no cifar10.tar.gz in --data, WINNOW_BENCH_DATA or ../shared/data")
            return
        settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
        measure(archive, settings, options.arms, options.seeds, options.out, options.jobs)
        print("\n" + table(finished(options.out, settings), options.arms, options.seeds))
        if not options.no_timing:
            print("\n" + timing(archive, settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="the folder with cifar10.tar.gz")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each; default 1")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--no-timing", action="store_true", help="do not time the training of heads")
    for name, value in asdict(Settings()).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true", help="score on images of the training set")
        else:
            parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")
    return parser


def measure(
    archive: Path, settings: Settings, arms: Sequence[str], seeds: Sequence[int], out: Path, jobs: int
) -> None:
    """Run each arm with each seed that is not in `out` yet, a process a seed, and append a line a result."""
    read_cifar10(archive)  # decoded once, before several processes would all do it
    done = {(row["arm"], row["seed"]) for row in finished(out, settings)}
    wanted = {seed: [arm for arm in arms if (arm, seed) not in done] for seed in seeds}
    out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool, out.open("a", encoding="utf-8") as file:
        running = [
            pool.submit(run_seed, archive, settings, left, seed) for seed, left in wanted.items() if left
        ]
        for rows in as_completed(running):
            for row in rows.result():
                file.write(json.dumps(row) + "\n")
                file.flush()
                shown = f"seed {row['seed']}  {row['arm']:20} accuracy {row['accuracy']:.4f}"
                print(f"{shown}  {row['seconds']:.0f} s", flush=True)


def run_seed(archive: Path, settings: Settings, arms: Sequence[str], seed: int) -> list[Row]:
    """Results of the arms of one seed: its network is pretrained once."""
    import torch

    torch.set_num_threads(1)
    parts = halves(
        read_cifar10(archive),
        known_images=settings.pretraining_images,
        new_images=settings.images,
        seed=seed,
        development=settings.development,
    )
    source = pretrained(settings, parts.known, seed) if set(arms) != {"scratch"} else None
    return [run(settings, arm, parts, source, seed) for arm in arms]


def pretrained(settings: Settings, known: View, seed: int) -> Path:
    """The folder of the network that learnt the known classes; trained where it is not there yet."""
    from stages.learning.loop import fit
    from stages.learning.models import build_model
    from stages.learning.recipe import Recipe
    from stages.learning.store import save_model

    chosen = {name: getattr(settings, name) for name in _OF_PRETRAINING}
    name = hashlib.sha256(json.dumps([chosen, seed]).encode()).hexdigest()[:16]
    folder, training = _PRETRAINED / name, _PRETRAINED / f"{name}.training"
    if folder.is_dir():
        return folder
    recipe = Recipe(
        epochs=settings.pretraining_epochs,
        steps_per_epoch=max(1, len(known) // 128),
        batch_size=128,
        learning_rate=settings.pretraining_rate,
        shift=2,
        flip=True,
        precision=cast("Precision", settings.precision),
    )
    model = build_model(_spec(settings, known), seed=seed)
    fit(
        model,
        known,
        recipe,
        seed=seed,
        device=cast("Device", settings.device),
        description="",
        keep_in=training,
    )
    with new_folder(folder) as partial:
        save_model(partial, model)
    shutil.rmtree(training, ignore_errors=True)
    return folder


def _spec(settings: Settings, data: View) -> ModelSpec:
    from stages.learning.models import pixel_statistics
    from stages.learning.networks.layers import ModelSpec

    height, width, channels = data.images.shape[1:]
    return ModelSpec(settings.model, data.classes, (height, width, channels), *pixel_statistics(data.images))


def run(settings: Settings, arm: str, parts: Halves, source: Path | None, seed: int) -> Row:
    """One result: a network adapted to the new classes, and its accuracy on their test images."""
    from stages.learning.adapting import transfer
    from stages.learning.loop import fit
    from stages.learning.models import build_model
    from stages.learning.prediction import predict
    from stages.learning.pretrained import backbone_from

    start = time.perf_counter()
    device, spec = cast("Device", settings.device), _spec(settings, parts.new)
    recipe = _recipe(settings, len(parts.new))
    if arm == "scratch" or source is None:
        model = build_model(spec, seed=seed)
        fits = [fit(model, parts.new, recipe, seed=seed, device=device, description="")]
    else:
        model, _ = backbone_from(source, spec, architecture=None, seed=seed)
        plan = _plan(settings, cast("Transfer", arm), recipe, model)
        fits = transfer(model, parts.new, plan, seed=seed, device=device, description=None)
    probabilities, _ = predict(model, parts.test.images, device, recipe.precision)
    return {
        "arm": arm,
        "seed": seed,
        "settings": asdict(settings),
        "accuracy": float((probabilities.argmax(1) == parts.test.labels).mean()),
        "epochs": sum(len(result.history) for result in fits),
        "known": parts.known.classes,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _recipe(settings: Settings, images: int) -> Recipe:
    from stages.learning.recipe import Recipe, steps_per_epoch

    return Recipe(
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch(images, settings.batch_size),
        batch_size=settings.batch_size,
        learning_rate=settings.scratch_rate,
        shift=2,
        flip=True,
        precision=cast("Precision", settings.precision),
    )


def _plan(settings: Settings, mode: Transfer, recipe: Recipe, model: Any) -> list[Any]:
    """The phases of a mode, with as many epochs altogether as training from scratch has."""
    from dataclasses import replace

    from stages.learning.adapting import phases
    from stages.learning.networks.zoo import stages_of

    head = {"feature_extraction": settings.epochs, "layer_wise": 0, "full": 0}.get(mode, settings.head_epochs)
    return phases(
        mode,
        replace(recipe, epochs=settings.epochs - head, learning_rate=settings.learning_rate),
        head_epochs=head,
        backbone_lr_factor=settings.backbone_lr_factor,
        layer_decay=settings.layer_decay,
        stages=len(stages_of(model.backbone)),
    )


def finished(path: Path, settings: Settings) -> list[Row]:
    """The results in the file that were made with these settings."""
    return read_results(path, lambda row: row["arm"] in ARMS and row["settings"] == asdict(settings))


def table(rows: Sequence[Row], arms: Sequence[str], seeds: Sequence[int]) -> str:
    """A Markdown table: mean accuracy over the seeds, and the paired difference to scratch (t, 95 %)."""
    found = {
        arm: {row["seed"]: row["accuracy"] for row in rows if row["arm"] == arm and row["seed"] in seeds}
        for arm in arms
    }
    lines = ["| arm | seeds | accuracy | − scratch |", "| --- | --- | --- | --- |"]
    for arm, by_seed in found.items():
        if not by_seed:
            continue
        beside = found.get("scratch", {})
        common = sorted(by_seed.keys() & beside.keys())
        gain = ""
        if common and arm != "scratch":
            mean, low, high = paired_difference(
                np.array([by_seed[seed] for seed in common]), np.array([beside[seed] for seed in common])
            )
            gain = f"{mean:+.3f}" if np.isnan(low) else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(f"| {arm} | {len(by_seed)} | {np.mean(list(by_seed.values())):.3f} | {gain} |")
    return "\n".join(lines)


def timing(archive: Path, settings: Settings) -> str:
    """Seconds an epoch of head training on features computed once, against forward passes, in words.

    The same recipe (flips alone) on 5,000 images in batches of 128; the median of three epochs, without the
    one pass that computes the features.
    """
    from dataclasses import replace

    import torch

    from stages.learning.adapting import Phase, transfer
    from stages.learning.models import build_model

    torch.set_num_threads(1)
    data = read_cifar10(archive)
    order = np.random.default_rng(0).permutation(len(data.labels))[:_TIMED_IMAGES]
    view = labelled(data.images, data.labels, np.sort(order), data.classes, np.arange(len(data.classes)))
    recipe = replace(
        _recipe(settings, len(view)),
        epochs=_TIMED_EPOCHS,
        steps_per_epoch=max(1, len(view) // _TIMED_BATCH),
        batch_size=_TIMED_BATCH,
        shift=0,
        backbone_lr_factor=0.0,
    )
    seconds = []
    for on_features in (False, True):
        ends: list[float] = []

        def look(_row: dict[str, float], ends: list[float] = ends) -> None:
            ends.append(time.perf_counter())

        transfer(
            build_model(_spec(settings, view), seed=0),
            view,
            [Phase("head", recipe, on_features)],
            seed=0,
            device=cast("Device", settings.device),
            description=None,
            on_epoch=look,
        )
        seconds.append(float(np.median(np.diff(ends))))
    return (
        f"an epoch of head training, {len(view):,} images: {seconds[0]:.3f} s with forward passes through "
        f"the frozen backbone, {seconds[1]:.4f} s on cached features: {seconds[0] / seconds[1]:.0f} times"
    )


if __name__ == "__main__":
    main()
