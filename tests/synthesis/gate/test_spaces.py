"""A judge's spaces: who is new to which model, and what can be said of a class there."""

import numpy as np
import pytest

from stages.dataset import View
from stages.synthesis.gate.quality import FEWEST
from stages.synthesis.gate.spaces import Spaces

CLASSES, IMAGES, FOLDS = 3, 60, 2


class Corners:
    """A stand-in for a judge whose models put each class into a corner of its own, the k-th by k turned."""

    models = (None,) * FOLDS
    fold = np.arange(CLASSES * IMAGES) % FOLDS

    def embed(self, images, k):
        around = np.random.default_rng(len(images)).normal(0, 0.3, (len(images), 4)).astype(np.float32)
        return around + np.roll(np.eye(4, dtype=np.float32)[images[:, 0, 0, 0]], k, axis=1)


def view(labels):
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (len(labels), 2, 2, 1))
    ids = np.array([str(row) for row in range(len(labels))], object)
    names = [str(label) for label in range(CLASSES)]
    return View(images, labels, np.ones(len(labels), np.float32), ids, names)


LABELS = np.repeat(np.arange(CLASSES), IMAGES)


@pytest.fixture
def spaces():
    return Spaces(view(LABELS), Corners(), max_kid=0.2, seed=0)


def made(label):
    images = np.full((40, 2, 2, 1), label, np.uint8)
    return [Corners().embed(images, k) for k in range(FOLDS)]


def test_a_model_sees_the_images_of_its_fold_alone(spaces):
    own = np.flatnonzero(LABELS == 1)
    everywhere = [Corners().embed(view(LABELS).images, k) for k in range(FOLDS)]
    for k, found in enumerate(spaces.held_out(own)):
        np.testing.assert_array_equal(found, everywhere[k][own[Corners.fold[own] == k]])


def test_made_images_of_the_class_are_like_real_ones_and_others_are_not(spaces):
    own = np.flatnonzero(LABELS == 1)
    right, wrong = (spaces.compare(made(label), own, 1) for label in (1, 2))
    assert list(right) == ["density", "coverage", "kid"]
    assert right["density"][0] > 0.7 and wrong["density"][0] < 0.1
    assert right["coverage"][0] > 0.9 * right["coverage"][1]
    assert wrong["coverage"][0] < 0.1
    assert abs(right["kid"][0]) < 0.2
    assert wrong["kid"][0] == pytest.approx(1, abs=0.3)  # its unit: the nearest other class


def test_too_few_images_say_nothing(spaces):
    own = np.flatnonzero(LABELS == 1)
    assert spaces.compare([each[: FEWEST - 1] for each in made(1)], own, 1) == {}
    few = own[: 2 * FEWEST - 2]
    assert spaces.compare(made(1), few, 1) == {}
    assert not spaces.tell_apart(few, 1)


def test_a_class_among_its_likes_is_not_told_apart(spaces):
    assert spaces.tell_apart(np.flatnonzero(LABELS == 0), 0)
    mixed = np.random.default_rng(0).permutation(LABELS)
    alike = Spaces(View(**{**vars(view(LABELS)), "labels": mixed}), Corners(), max_kid=0.01, seed=0)
    assert not alike.tell_apart(np.flatnonzero(mixed == 0), 0)
