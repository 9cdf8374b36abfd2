"""CIFAR-10 with labels that people gave (CIFAR-10N), or with a long tail, for `benchmarks.remedies`."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.cifar_images import long_tail, read_cifar10
from benchmarks.planting import kept
from stages.dataset import View
from stages.errors import WinnowError

if TYPE_CHECKING:
    from stages.learning.names import Device

LABELS = ("aggregate", "worst")  # CIFAR-10N: 9 % and 40 % of the labels are wrong
TASKS = (*LABELS, "long_tail")
_DEVELOPMENT = 500  # images a class of the training set, that settings are chosen by
_BATCH, _RATE = 128, 0.005  # of the cross-validation


@dataclass(frozen=True)
class Task:
    """What is trained on and scored.

    Attributes
    ----------
    train, test : the test images have clean labels, the same number of each class
    true : int64, N; the clean labels of the training images
    """

    train: View
    true: NDArray[np.int64]
    test: View


def read_task(data: Path, name: str, *, images: int, seed: int, development: bool = False) -> Task:
    """The task of a seed, which says what images there are and, in the long tail, which class is how rare.

    Parameters
    ----------
    data : the folder with cifar10.tar.gz and cifar10n_labels.csv.gz
    name : one of `TASKS`
    images : training images, as many of each class; of the long tail, of which 100:1 remain, ten times
        those of the largest class
    development : score on other images of the training set: settings are chosen there
    """
    archive = read_cifar10(data / "cifar10.tar.gz")
    if name == "long_tail":
        # a tenth is kept for validation by the tail's own maker
        largest = min(images // 4, 4500 - 200 * development)
        tail = long_tail(archive, largest=largest, ratio=100.0, seed=seed, development=development)
        return Task(tail.train, tail.train.labels, tail.test)
    if name not in LABELS:
        raise WinnowError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    given = _labels_by_people(data / "cifar10n_labels.csv.gz", name, archive.classes)
    rng = np.random.default_rng([seed, images])
    wanted, held_out = images // len(archive.classes), _DEVELOPMENT * development
    if wanted + held_out > len(archive.labels) // len(archive.classes):
        raise WinnowError(f"--images {images}: there are {len(archive.labels)}, less the development images")
    rows, others = [], []
    for label in range(len(archive.classes)):
        drawn = rng.permutation(np.flatnonzero(archive.labels == label))
        rows.append(drawn[:wanted])
        others.append(drawn[len(drawn) - held_out :])
    train, other = np.sort(np.concatenate(rows)), np.sort(np.concatenate(others))
    test = (archive.images[other], archive.labels[other])
    if not development:
        test = (archive.test_images, archive.test_labels)
    return Task(
        _view(archive.images[train], given[train], archive.classes),
        archive.labels[train],
        _view(*test, archive.classes),
    )


def _labels_by_people(table: Path, name: str, classes: list[str]) -> NDArray[np.int64]:
    """In the order of `read_cifar10`'s training images: sorted by path."""
    with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    return np.array([classes.index(row[name]) for row in rows], np.int64)


def _view(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str]) -> View:
    names = np.array([f"{row:016x}" for row in range(len(labels))], dtype=object)
    return View(images, labels, np.ones(len(labels), np.float32), names, classes)


@dataclass(frozen=True)
class Suspicion:
    """What the noise stage says of a task's labels.

    Attributes
    ----------
    curated : the training view as the default policies leave it
    transition : float64, K×K, rows the likely true class; NaN where nothing is known of a class
    wrong_share : of the labels, as many as were flagged
    """

    curated: View
    transition: NDArray[np.float64]
    wrong_share: float


def suspect(task: Task, epochs: int, *, model: str, seed: int, device: Device) -> Suspicion:
    """Cross-validation in three folds, the default rule and the default policies, as the stages do it.

    Kept once it is there: several remedies start from it.
    """
    from stages.curate import read_policy
    from stages.dataset import SAMPLE_COLUMNS
    from stages.noise.issues import find_issues
    from stages.noise.ledger import build_ledger
    from stages.params import load_params
    from stages.reporting.noise_figures import estimated_transition

    view = task.train

    def make() -> dict[str, NDArray[Any]]:
        from stages.noise.ensemble import Ensemble
        from stages.noise.folds import cross_validate

        ensemble = Ensemble((model,), 3, 1, epochs, _BATCH, _RATE, shift=2, flip=True)
        found = cross_validate(view, view.images[:0], ensemble, seed=seed, device=device)
        return {"probs": found.train_probs, "embeddings": found.train_embeddings}

    inputs = {"labels": view.labels, "images": view.images, "epochs": epochs, "model": model, "seed": seed}
    answers = kept("remedies", inputs, make)
    names = np.asarray(view.classes, dtype=object)[view.labels]
    samples = pd.DataFrame(
        {
            "sample_id": view.sample_ids,
            "row": np.arange(len(view)),
            "split": "train",
            "label": names,
            "source": view.sample_ids,
            "width": 32,
            "height": 32,
            "group": view.sample_ids,
            "weight": 1.0,
        }
    )[SAMPLE_COLUMNS]
    findings = find_issues(
        samples, answers["probs"], answers["embeddings"], view.classes, rule="auto", neighbors=10, seed=seed
    )
    params = load_params(Path(__file__).resolve().parent.parent / "params.yaml")
    ledger, _ = build_ledger(
        samples, findings.issues, read_policy(params.curate), _no_reviews(), _no_conflicts()
    )
    stays = (ledger["action"] != "drop").to_numpy()
    labels = np.array([view.classes.index(name) for name in ledger["label"]], np.int64)
    curated = View(
        view.images[stays],
        labels[stays],
        ledger["weight"].to_numpy(np.float32)[stays],
        view.sample_ids[stays],
        view.classes,
    )
    return Suspicion(
        curated,
        estimated_transition(findings.issues, view.classes),
        float(findings.issues["is_label_issue"].mean()),
    )


def _no_reviews() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype="str") for name in ("sample_id", "decision", "label", "note")})


def _no_conflicts() -> pd.DataFrame:
    from stages.dataset import CONFLICT_COLUMNS

    return pd.DataFrame({name: pd.Series(dtype="str") for name in CONFLICT_COLUMNS})
