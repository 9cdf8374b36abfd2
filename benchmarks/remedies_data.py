"""CIFAR-10 with labels that people gave (CIFAR-10N), or with a long tail, for `benchmarks.remedies`."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.cifar_images import long_tail, read_cifar10
from benchmarks.measuring import ROOT
from benchmarks.planting import kept
from stages.dataset.base import View
from stages.errors import WinnowError
from stages.workflow.params import PARAMS_FILE, load_params

if TYPE_CHECKING:
    from stages.learning.names import Device

LABELS = ("aggregate", "random1", "worst")  # CIFAR-10N: 9 %, 17 % and 40 % of the labels are wrong
TASKS = ("aggregate", "worst", "long_tail")
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


def read_task(data: Path, name: str, *, images: int | None, seed: int, development: bool = False) -> Task:
    """The task of a seed, which says what images there are and, in the long tail, which class is how rare.

    Parameters
    ----------
    data : the folder with cifar10.tar.gz and cifar10n_labels.csv.gz
    name : one of `TASKS`, or another of `LABELS`
    images : training images, as many of each class; of the long tail, of which 100:1 remain, ten times
        those of the largest class. None: all that there are beside the development images
    development : score on other images of the training set: settings are chosen there
    """
    archive = read_cifar10(data / "cifar10.tar.gz")
    if images is None:
        images = max(0, len(archive.labels) - len(archive.classes) * _DEVELOPMENT * development)
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
        view_of(archive.images[train], given[train], archive.classes),
        archive.labels[train],
        view_of(*test, archive.classes),
    )


def _labels_by_people(table: Path, name: str, classes: list[str]) -> NDArray[np.int64]:
    """In the order of `read_cifar10`'s training images: sorted by path."""
    with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    return np.array([classes.index(row[name]) for row in rows], np.int64)


def view_of(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str]) -> View:
    """Arrays as a view; samples are named by their place in it, as 16 hex."""
    names = np.array([f"{row:016x}" for row in range(len(labels))], dtype=object)
    return View(images, labels, np.ones(len(labels), np.float32), names, classes)


@dataclass(frozen=True)
class Suspicion:
    """What the noise stage says of a view's labels.

    Attributes
    ----------
    flagged : bool, N; the labels that are called wrong
    actions : how many samples the policies `keep`, `relabel`, `drop`, …
    curated : the view as the default policies leave it
    transition : float64, K×K, rows the likely true class; NaN where nothing is known of a class
    """

    flagged: NDArray[np.bool_]
    actions: dict[str, int]
    curated: View
    transition: NDArray[np.float64]

    @property
    def wrong_share(self) -> float:
        """Of the labels, as many as were flagged: 0 to 1."""
        return float(self.flagged.mean())


def suspect(task: Task, epochs: int, *, model: str, seed: int, device: Device) -> Suspicion:
    """Cross-validation in three folds, the default rule and the default policies, as the stages do it.

    Kept once it is there: several remedies start from it.
    """
    view = task.train

    def make() -> dict[str, NDArray[Any]]:
        from stages.noise.folds import CrossValidation, cross_validate

        ensemble = CrossValidation((model,), 3, 1, epochs, _BATCH, _RATE, shift=2, flip=True)
        found = cross_validate(view, view.images[:0], ensemble, seed=seed, device=device)
        return {"probs": found.train_probs}

    inputs = {"labels": view.labels, "images": view.images, "epochs": epochs, "model": model, "seed": seed}
    return curate(view, kept("remedies", inputs, make)["probs"], seed=seed)


def curate(
    view: View,
    probs: NDArray[np.float32],
    *,
    seed: int,
    judged: NDArray[np.bool_] | None = None,
    agreement: NDArray[np.float32] | None = None,
) -> Suspicion:
    """The default rule on out-of-sample probabilities, and what the default policies make of it.

    Neighbours and pixels are not looked at, which takes cleanlab and cleanvision: the default policies keep
    all that these find, so that the same samples stay with the same labels.

    Parameters
    ----------
    probs : float32, N×K
    judged, agreement : see `stages.noise.issues.find_issues`
    """
    from stages.curate import read_policy
    from stages.curation.ledger import build_ledger
    from stages.noise.issues import find_issues
    from stages.noise.transition import estimated_transition

    params = load_params(ROOT / PARAMS_FILE)
    samples = _samples(view)
    alike = np.zeros((len(view), 1), np.float32)  # embeddings that say nothing: no check asks for neighbours
    findings = find_issues(
        samples,
        probs,
        alike,
        view.classes,
        rule=params.detect_noise.rule,
        neighbors=1,
        judged=judged,
        agreement=agreement,
        seed=seed,
    )
    policy = read_policy(params.curate)
    ledger, _ = build_ledger(samples, findings.issues, policy, _no_reviews(), _no_conflicts())
    stays = (ledger["action"] != "drop").to_numpy()
    labels = np.array([view.classes.index(name) for name in ledger["label"]], np.int64)
    weights = view.weights * ledger["weight"].to_numpy(np.float32)
    return Suspicion(
        findings.issues["is_label_issue"].to_numpy(bool),
        {str(name): int(count) for name, count in ledger["action"].value_counts().items()},
        replace(view, labels=labels, weights=weights).take(stays),
        estimated_transition(findings.issues, view.classes),
    )


def _samples(view: View) -> pd.DataFrame:
    """The table of a base that were this training split alone."""
    from stages.dataset.base import SAMPLE_COLUMNS

    return pd.DataFrame(
        {
            "sample_id": view.sample_ids,
            "row": np.arange(len(view)),
            "split": "train",
            "label": np.asarray(view.classes, dtype=object)[view.labels],
            "source": view.sample_ids,
            "width": view.images.shape[2],
            "height": view.images.shape[1],
            "group": view.sample_ids,
            "weight": view.weights,
        }
    )[SAMPLE_COLUMNS]


def _no_reviews() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype="str") for name in ("sample_id", "decision", "label", "note")})


def _no_conflicts() -> pd.DataFrame:
    from stages.dataset.base import CONFLICT_COLUMNS

    return pd.DataFrame({name: pd.Series(dtype="str") for name in CONFLICT_COLUMNS})
