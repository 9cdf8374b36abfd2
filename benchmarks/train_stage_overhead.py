"""What the whole stage `train` costs beside a bare loop of the same steps.

    python -m benchmarks.train_stage_overhead
    python -m benchmarks.train_stage_overhead --threads 2 --epochs 20 --rounds 3

The command `python -m stages.train --view raw`, from the start of Python to its end: imports, reading,
checkpoints, validation after each epoch, calibration, MLflow (a database of its own) and what is written.
Beside it the steps alone, of the same number, network, batches, transforms and optimiser, as a loop over
tensors in memory takes them (benchmarks/training_sides.py), in a process whose start does not count. On
CIFAR-10 (the first training images of each class; looks for cifar10.tar.gz in WINNOW_BENCH_DATA or
../shared/data), a tenth of which is validation. In each round the loop runs before the stage and after it,
and counts with the mean of the two. CPU seconds hardly depend on what else the machine does; wall seconds
do. What is done once weighs less the longer a run is: the loop should take two minutes or more. Seven
minutes a round on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from benchmarks.measuring import ROOT, bench_data, workspace
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

_PLACE = Path(".winnow/bench/train_stage_overhead")
_SIDE = 32  # pixels
_BARE = "import sys; from benchmarks.train_stage_overhead import time_bare; time_bare(sys.argv[1])"

Seconds = tuple[float, float]  # CPU, wall


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a line a round."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_stage_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=20_000, help="with those of validation; default 20000")
    parser.add_argument("--epochs", type=int, default=10, help="default 10")
    parser.add_argument("--batch-size", type=int, default=128, help="default 128")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument("--rounds", type=int, default=1, help="default 1")
    options = parser.parse_args(argv)
    with clean_exit("train_stage_overhead"), workspace(_PLACE, {}) as place:
        prepare(place, options)
        print(f"{'loop':>15}{'stage':>15}{'stage / loop':>19}")
        print(f"{'CPU s':>8}{'wall s':>7}" * 2 + f"{'CPU':>12}{'wall':>7}")
        for _ in range(options.rounds):
            before, stage, after = _bare(place), _stage(place), _bare(place)
            loop = [statistics.mean(pair) for pair in zip(before, after, strict=True)]
            ratios = [whole / bare for whole, bare in zip(stage, loop, strict=True)]
            print(
                f"{loop[0]:>8.1f}{loop[1]:>7.1f}{stage[0]:>8.1f}{stage[1]:>7.1f}"
                f"{ratios[0]:>12.3f}{ratios[1]:>7.3f}",
                flush=True,
            )


def prepare(place: Path, options: argparse.Namespace) -> None:
    """The images as the pipeline takes them, ingested, and the settings."""
    from benchmarks.cifar_images import read_cifar10

    folder = bench_data()
    if folder is None or not (folder / "cifar10.tar.gz").is_file():
        raise WinnowError("there is no cifar10.tar.gz in WINNOW_BENCH_DATA or ../shared/data: put it there")
    data = read_cifar10(folder / "cifar10.tar.gz")
    each = options.images // len(data.classes)
    rows = np.concatenate([np.flatnonzero(data.labels == label)[:each] for label in range(len(data.classes))])
    split = np.where(np.arange(len(rows)) % 10 == 0, "val", "train")
    split[1::50] = "test"
    np.savez(place / "cifar.npz", images=data.images[rows], labels=data.labels[rows], split=split)
    train = {
        "epochs": options.epochs - 1,  # and one of `finetune`: the untreated model trains as long as both
        "batch_size": options.batch_size,
        "label_smoothing": 0.0,
        "shift": 2,
        "flip": True,
    }
    changes: dict[str, Any] = {
        "ingest": {
            "source": "cifar.npz",
            "format": "auto",
            "image_size": _SIDE,
            "color": "rgb",
            "near_duplicates": None,
        },
        "train": train,
        "finetune": {"head_epochs": 0, "epochs": 1},
    }
    yaml = YAML()
    params = yaml.load(place / "params.yaml")
    params.update({"device": "cpu", "threads": options.threads})
    for section, own in changes.items():
        params[section].update(own)
    yaml.dump(params, place / "params.yaml")
    _run(place, "-m", "stages.ingest")


def time_bare(path: str) -> None:
    """Train in the current folder by the bare loop; its seconds go to a file, as JSON."""
    import torch

    from benchmarks.training_sides import Task, bare
    from stages.dataset.base import INGESTED, read_dataset, split_view
    from stages.learning.recipe import Recipe, steps_per_epoch
    from stages.workflow.params import load_params

    params = load_params()
    torch.set_num_threads(params.threads)
    view = split_view(read_dataset(INGESTED), "train")
    steps = steps_per_epoch(len(view), params.train.batch_size)
    epochs = params.train.epochs + params.finetune.head_epochs + params.finetune.epochs
    recipe = Recipe.from_values(params.train.model_dump(), epochs=epochs, steps_per_epoch=steps)
    task = Task(view.images, view.labels, view.classes, Path(), recipe)
    cpu, wall = sum(os.times()[:2]), time.perf_counter()
    for _ in bare(task, params.seed):
        pass
    seconds = (sum(os.times()[:2]) - cpu, time.perf_counter() - wall)
    Path(path).write_text(json.dumps(seconds), "utf-8")


def _bare(place: Path) -> Seconds:
    _run(place, "-c", _BARE, "seconds.json")
    cpu, wall = json.loads((place / "seconds.json").read_text("utf-8"))
    return cpu, wall


def _stage(place: Path) -> Seconds:
    cpu, wall = sum(os.times()[2:4]), time.perf_counter()
    _run(place, "-m", "stages.train", "--view", "raw")
    return sum(os.times()[2:4]) - cpu, time.perf_counter() - wall


def _run(place: Path, *arguments: str) -> None:
    threads = str(YAML(typ="safe").load(place / "params.yaml")["threads"])
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "WINNOW_TRACKING": "on"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | own
    result = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise WinnowError(f"{' '.join(arguments[:2])} failed: {result.stderr.splitlines()[-1:]}")


if __name__ == "__main__":
    main()
