"""CIFAR-10 as arrays, and long-tailed pieces of it."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.planting import Arrays, Labels, kept
from stages.dataset.base import View
from stages.errors import WinnowError

_DEVELOPMENT = 200  # images a class


@dataclass(frozen=True)
class Cifar:
    """50,000 training and 10,000 test images, uint8, N×32×32×3, labels 0 to 9, and the classes' names."""

    images: NDArray[np.uint8]
    labels: Labels
    test_images: NDArray[np.uint8]
    test_labels: Labels
    classes: list[str]


@dataclass(frozen=True)
class LongTail:
    """Few and unbalanced images of one seed; no image is in two of the parts.

    Attributes
    ----------
    train : `largest` images of one class, fewer of the next, and so on; which class is which follows
        from the seed
    val : a tenth of each class's number in `train`, one at least: as skewed, as users' are
    test : CIFAR-10's own test images, or its `development` images, 200 a class of its training images
    """

    train: View
    val: View
    test: View


def read_cifar10(archive: Path) -> Cifar:
    """Read `cifar10.tar.gz`, with files named <split>/<class>/NNNN.jpg; decoded once, then kept."""

    def make() -> Arrays:
        found: dict[str, NDArray[np.uint8]] = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None and member.name.endswith(".jpg"):
                    name = member.name.partition("/")[2]
                    found[name] = np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB"))
        classes = sorted({name.split("/")[1] for name in found})
        arrays: Arrays = {"classes": np.array(classes)}
        for split in ("train", "test"):
            names = sorted(name for name in found if name.startswith(split))
            arrays[f"{split}_images"] = np.stack([found[name] for name in names])
            arrays[f"{split}_labels"] = np.array([classes.index(n.split("/")[1]) for n in names], np.int64)
        return arrays

    kept_arrays = kept("cifar10", {"archive": (archive.name, archive.stat().st_size)}, make)
    return Cifar(
        kept_arrays["train_images"],
        kept_arrays["train_labels"],
        kept_arrays["test_images"],
        kept_arrays["test_labels"],
        [str(name) for name in kept_arrays["classes"]],
    )


def long_tail(data: Cifar, *, largest: int, ratio: float, seed: int, development: bool = False) -> LongTail:
    """Training images of a long tail, n_i = largest · ratio^(-i/9) (Cui et al., arXiv 1901.05555).

    Parameters
    ----------
    data : see `Cifar`
    largest : training images of the largest class
    ratio : of the largest class to the smallest
    seed : of the order of the classes, and of the images drawn
    development : score on images of the training set instead of the test set: settings are chosen there

    Raises
    ------
    WinnowError
        Where a class has too few images for all parts.
    """
    rng = np.random.default_rng([seed, largest])
    sizes = np.round(np.geomspace(largest, largest / ratio, len(data.classes))).astype(int)
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for label, size in zip(rng.permutation(len(data.classes)), sizes, strict=True):
        rows = rng.permutation(np.flatnonzero(data.labels == label))
        held_out = max(1, round(size / 10))
        if size + held_out + _DEVELOPMENT * development > len(rows):
            raise WinnowError(
                f"{size} training images of {data.classes[label]}: there are only {len(rows)} in all"
            )
        parts[0].append(rows[:size])
        parts[1].append(rows[size : size + held_out])
        parts[2].append(rows[-_DEVELOPMENT:])
    train, val, test = (
        _view(data.images, data.labels, np.sort(np.concatenate(rows)), data.classes, "train")
        for rows in parts
    )
    if not development:
        everything = np.arange(len(data.test_labels))
        test = _view(data.test_images, data.test_labels, everything, data.classes, "test")
    return LongTail(train, val, test)


def _view(
    images: NDArray[np.uint8], labels: Labels, rows: NDArray[np.int64], classes: list[str], split: str
) -> View:
    names = np.array([f"{split}/{row:05d}" for row in rows], dtype=object)
    return View(images[rows], labels[rows], np.ones(len(rows), np.float32), names, classes)
