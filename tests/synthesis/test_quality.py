"""A judge's spaces: who is new to which model, and what can be said of a class there."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dataset.base import View
from stages.synthesis import quality
from stages.synthesis.quality import (
    FEWEST,
    Spaces,
    density_coverage,
    effective_number,
    expected_coverage,
    kernel_distance,
)

CLASSES, IMAGES, FOLDS = 3, 60, 2
LABELS = np.repeat(np.arange(CLASSES), IMAGES)


def _normal(seed, count, centre=0.0, dimensions=4):
    return np.random.default_rng(seed).normal(centre, 1.0, (count, dimensions))


def test_density_and_coverage_by_hand():
    real = np.array([[0.0], [1.0], [3.0]])  # balls of the first neighbour: 1, 1 and 2 around them
    density, coverage = density_coverage(real, np.array([[0.5], [9.0]]), neighbours=1)
    assert density == 1.0  # two balls around .5, none around 9
    assert coverage == pytest.approx(2 / 3)


def test_unseen_images_of_the_same_kind_reach_what_is_expected():
    found = [density_coverage(_normal(seed, 60), _normal(seed + 1000, 40)) for seed in range(100)]
    density, coverage = np.mean(found, axis=0)
    assert density == pytest.approx(1.0, abs=0.05)
    assert coverage == pytest.approx(expected_coverage(60, 40), abs=0.01)
    assert expected_coverage(60, 40) == pytest.approx(0.930, abs=0.001)


def test_density_says_far_and_coverage_says_few():
    real = _normal(0, 100)
    assert density_coverage(real, _normal(1, 100, centre=9.0)) == (0.0, 0.0)
    density, coverage = density_coverage(real, np.zeros((100, 4)))  # one image, in the middle
    assert density > 0.5
    assert coverage < 0.3


def test_the_distance_is_nought_on_average_for_one_distribution_and_grows_with_the_difference():
    rng = np.random.default_rng(0)

    def sample(shift=0.0, scale=1.0):
        return (rng.normal(size=(60, 8)) * scale + shift).astype(np.float32)

    same = [kernel_distance(sample(), sample()) for _ in range(40)]
    assert abs(np.mean(same)) < 0.1 * kernel_distance(sample(), sample(1.0))
    assert min(same) < 0 < max(same)
    assert max(same) < kernel_distance(sample(), sample(0.5)) < kernel_distance(sample(), sample(1.0))
    assert kernel_distance(sample(), sample(scale=0.2)) > max(same)


def test_the_distance_of_many_is_that_of_all_pairs_at_once(monkeypatch):
    real, made = _normal(0, 30), _normal(1, 25, centre=1.0)
    expected = kernel_distance(made, real)
    monkeypatch.setattr(quality, "_KERNEL_ROWS", 7)
    assert kernel_distance(made, real) == pytest.approx(expected, rel=1e-12)
    x, y = made.astype(np.float64), real.astype(np.float64)
    pairs = [((a @ b.T / 4 + 1) ** 3) for a, b in ((x, x), (y, y), (x, y))]
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in pairs[:2]]
    assert expected == pytest.approx(sum(means) - 2 * pairs[2].mean(), rel=1e-12)


def test_effective_number_counts_what_differs():
    apart = 100.0 * np.eye(8)
    assert effective_number(apart, 1.0) == pytest.approx(8.0)
    assert effective_number(np.repeat(apart[:3], 20, axis=0), 1.0) == pytest.approx(3.0)
    jitter = np.random.default_rng(0).normal(0, 0.01, (60, 8))
    assert effective_number(np.repeat(apart[:3], 20, axis=0) + jitter, 1.0) == pytest.approx(3.0, abs=0.2)
    assert effective_number(np.zeros((5, 3)), 0.0) == pytest.approx(1.0)


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
