"""Label errors found from pixels: the shipped ensemble against a cross-validation done by hand.

    python -m benchmarks.noise_pixels
    python -m benchmarks.noise_pixels --labels random1 aggregate worst --json found.json

On the first 2,000 training images of each class of CIFAR-10, with labels that people gave (CIFAR-10N).
By hand: one small CNN a fold of one 4-fold cross-validation, and cleanlab's default rule. Winnow: the
settings below, and its own rule. Both train with the project's loop on one thread. What is finished
is kept, fold by fold, and a run that was stopped goes on; seconds are those of the folds' first
training. CPU seconds do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measuring import ROOT, bench_data
from stages.dataset.base import View
from stages.dataset.files import new_file, write_json
from stages.errors import WinnowError
from stages.noise.folds import CrossValidation, cross_validate, inputs_digest
from stages.noise.labels import find_label_errors
from stages.workflow.stage import clean_exit

CACHE = ROOT / ".winnow/benchmarks/noise_pixels"
BY_HAND = CrossValidation(("small_cnn",), folds=4, repeats=1, epochs=12, batch_size=64, learning_rate=0.005)
WINNOW = CrossValidation(
    ("small_cnn",),
    folds=4,
    repeats=2,
    epochs=14,
    batch_size=64,
    learning_rate=0.005,
    shift=2,
    flip=True,
    downweight_suspects=True,
)
_SETTINGS = {"by hand": BY_HAND, "winnow": WINNOW}
_KINDS = ("aggregate", "random1", "random2", "random3", "worst")

Figures = dict[str, Any]


def main(argv: list[str] | None = None) -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise_pixels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--labels", nargs="+", choices=_KINDS, default=["random1"], help="of CIFAR-10N")
    parser.add_argument("--first", type=int, default=0, help="the first image of each class; default 0")
    parser.add_argument("--per-class", type=int, default=2000, help="images of each class; default 2000")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    parser.add_argument("--rule", default="auto", help="Winnow's rule; default auto")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"default {CACHE.relative_to(ROOT)}")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args(argv)
    with clean_exit("noise_pixels"):
        figures = measure(options)
        if options.json is not None and figures:
            with new_file(options.json) as path:
                write_json(path, figures)


def measure(options: argparse.Namespace) -> list[Figures]:
    """A row a set of labels and a way; printed as they come."""
    import torch

    data = bench_data()
    if data is None or not (data / "cifar10n_labels.csv.gz").is_file():
        print("noise_pixels: skipped: no CIFAR-10 and CIFAR-10N in WINNOW_BENCH_DATA or ../shared/data")
        return []
    torch.set_num_threads(options.threads)
    images, names = _images(data / "cifar10.tar.gz", options.first, options.per_class)
    print(
        f"{'labels':10}{'wrong':>7}  {'way':9}{'rule':>20}{'F1':>7}{'precision':>11}{'recall':>8}{'AUROC':>7}"
        f"{'CPU s':>8}{'wall s':>8}"
    )
    rows = []
    for kind in options.labels:
        given, true, classes = _labels(data / "cifar10n_labels.csv.gz", names, kind)
        weights = np.ones(len(given), np.float32)
        view = View(images, given, weights, np.array(names, dtype=object), classes)
        spent: dict[str, float] = {}
        for way, setting in _SETTINGS.items():
            key = inputs_digest(view, images[:0], None, setting, seed=0, device="cpu")[:16]
            place = options.cache / f"{kind}-{way.replace(' ', '_')}-{key}"
            kept = _trained(place, view, true, setting)
            spent[way] = float(kept["cpu"])
            for rule in ("prune_by_noise_rate", options.rule):
                row = {"labels": kind, "wrong": float((given != true).mean()), "way": way, "rule": rule}
                row |= _score(given, true, kept["pred_probs"], rule)
                row |= {"cpu_seconds": float(kept["cpu"]), "wall_seconds": float(kept["wall"])}
                rows.append(row)
                _print(row)
        print(f"{kind}: Winnow took {spent['winnow'] / spent['by hand']:.2f} times the CPU seconds")
    return rows


def _trained(
    place: Path, view: View, true: NDArray[np.int64], setting: CrossValidation
) -> dict[str, NDArray[Any]]:
    """Out-of-sample probabilities and what they cost, from the cache where they are there."""
    finished = place.with_suffix(".npz")
    if not finished.is_file():
        seconds = _Seconds(place.with_suffix(".json"))
        result = cross_validate(
            view, view.images[:0], setting, seed=0, device="cpu", keep_in=place, on_fold=seconds.lap
        )
        content = {"pred_probs": result.train_probs, "votes": result.train_votes}
        cpu, wall = seconds.total()
        with new_file(finished) as path, path.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                labels=view.labels,
                true=true,
                cpu=np.array(cpu),
                wall=np.array(wall),
                **content,
            )
        shutil.rmtree(place, ignore_errors=True)
    with np.load(finished, allow_pickle=False) as file:
        return dict(file)


class _Seconds:
    """CPU and wall seconds of each fold, kept so that a run that goes on knows those before it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._laps: dict[str, list[float]] = json.loads(path.read_text()) if path.is_file() else {}
        self._last = time.process_time(), time.perf_counter()

    def lap(self, row: dict[str, float]) -> None:
        """A fold is done; of one that was kept the seconds are known."""
        now = time.process_time(), time.perf_counter()
        took = [after - before for after, before in zip(now, self._last, strict=True)]
        self._laps.setdefault(str(int(row["epoch"])), took)
        self._last = now
        with new_file(self._path) as path:
            path.write_text(json.dumps(self._laps))

    def total(self) -> tuple[float, float]:
        """Of all folds."""
        cpu, wall = (sum(lap[index] for lap in self._laps.values()) for index in (0, 1))
        return cpu, wall


def _score(
    given: NDArray[np.int64], true: NDArray[np.int64], probs: NDArray[np.float32], rule: str
) -> Figures:
    from sklearn.metrics import roc_auc_score

    wrong = given != true
    found = find_label_errors(given, probs.astype(np.float64), rule)
    hits = int((found & wrong).sum())
    return {
        "f1": 2 * hits / max(1, int(found.sum() + wrong.sum())),
        "precision": hits / max(1, int(found.sum())),
        "recall": hits / max(1, int(wrong.sum())),
        "auroc": float(roc_auc_score(wrong, -probs[np.arange(len(given)), given])),
    }


def _print(row: Figures) -> None:
    print(
        f"{row['labels']:10}{100 * row['wrong']:>5.1f} %  {row['way']:9}{row['rule']:>20}{row['f1']:>7.3f}"
        f"{row['precision']:>11.3f}{row['recall']:>8.3f}{row['auroc']:>7.3f}{row['cpu_seconds']:>8.0f}"
        f"{row['wall_seconds']:>8.0f}",
        flush=True,
    )


def _images(archive: Path, first: int, per_class: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Of each class so many training images by file name from `first` on, and their names."""
    wanted = {f"{number:04d}.jpg" for number in range(first, first + per_class)}
    found: dict[str, NDArray[np.uint8]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, name = member.name.partition("/")  # train/<class>/NNNN.jpg
            if name.startswith("train/") and name.rpartition("/")[2] in wanted:
                content = tar.extractfile(member)
                if content is not None:
                    found[name] = np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB"))
    if not found:
        raise WinnowError(f"{archive} holds no training images {first} to {first + per_class - 1}")
    names = sorted(found)
    return np.stack([found[name] for name in names]), names


def _labels(
    table: Path, names: list[str], kind: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Given and true labels as indices, and the class names."""
    with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    classes = sorted({row["clean"] for row in rows.values()})
    given, true = (
        np.array([classes.index(rows[name][column]) for name in names], np.int64)
        for column in (kind, "clean")
    )
    return given, true, classes


if __name__ == "__main__":
    main()
