"""CIFAR-10 in two halves of five classes each: many images of the one, few of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.cifar_images import Cifar
from benchmarks.planting import Labels
from stages.dataset.base import View
from stages.errors import WinnowError

_DEVELOPMENT = 200  # images a class
_CLASSES = 5


@dataclass(frozen=True)
class Halves:
    """CIFAR-10 as one seed divides it: five classes with many images, five others with few.

    Attributes
    ----------
    known : training images for pretraining
    new : the few training images of the other classes
    test : of the other classes: CIFAR-10's test images, or with `development` 200 a class of its training
        images, of which none is in `new`
    """

    known: View
    new: View
    test: View


def halves(
    data: Cifar, *, known_images: int, new_images: int, seed: int, development: bool = False
) -> Halves:
    """The classes and images of a seed.

    Parameters
    ----------
    data : see `Cifar`
    known_images : of the five classes for pretraining together
    new_images : of each of the others
    seed : of the order of classes and images; the known ones follow from it alone
    development : score on images of the training set instead of the test set: settings are chosen there

    Raises
    ------
    WinnowError
        Where a class has too few images.
    """
    rng = np.random.default_rng([seed, _CLASSES])
    order = rng.permutation(len(data.classes))
    each = known_images // _CLASSES
    rows: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for place, label in enumerate(order):
        own = rng.permutation(np.flatnonzero(data.labels == label))
        needed = each if place < _CLASSES else new_images + _DEVELOPMENT
        if needed > len(own):
            raise WinnowError(f"{needed} images of {data.classes[label]}: there are only {len(own)}")
        if place < _CLASSES:
            rows[0].append(own[:each])
        else:
            rows[1].append(own[:new_images])
            rows[2].append(own[-_DEVELOPMENT:])
    known, new, held_out = (np.sort(np.concatenate(part)) for part in rows)
    images, labels = data.images, data.labels
    if development:
        test = labelled(images, labels, held_out, data.classes, order[_CLASSES:])
    else:
        found = np.flatnonzero(np.isin(data.test_labels, order[_CLASSES:]))
        test = labelled(data.test_images, data.test_labels, found, data.classes, order[_CLASSES:])
    return Halves(
        labelled(images, labels, known, data.classes, order[:_CLASSES]),
        labelled(images, labels, new, data.classes, order[_CLASSES:]),
        test,
    )


def labelled(
    images: NDArray[np.uint8],
    labels: Labels,
    rows: NDArray[np.int64],
    classes: Sequence[str],
    kept: NDArray[np.int64],
) -> View:
    """Some images; labels count among the classes that are kept, in the order of `classes`."""
    chosen = np.sort(kept)
    return View(
        images[rows],
        np.searchsorted(chosen, labels[rows]).astype(np.int64),
        np.ones(len(rows), np.float32),
        np.array([str(row) for row in rows], dtype=object),
        [classes[label] for label in chosen],
    )
