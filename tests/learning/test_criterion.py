from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from stages.dataset.base import View
from stages.learning.batches import Batch
from stages.learning.criterion import Criterion, Outputs
from stages.learning.recipe import LossOptions, Recipe

RECIPE = Recipe(10, 10, 8, 0.1)
COUNT, CLASSES = 8, 3


def view(**more: object) -> View:
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    images = np.zeros((COUNT, 4, 4, 1), np.uint8)
    weights = np.linspace(0.5, 1.5, COUNT).astype(np.float32)
    return View(images, labels, weights, np.arange(COUNT).astype(object), list("abc"), **more)


def outputs(seed: int, *, second: int = 0, rows: int = COUNT) -> Outputs:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, CLASSES, generator=random)
    features = torch.randn(rows, 5, generator=random)
    return Outputs(features, logits, torch.randn(rows, second, generator=random) if second else None)


def batch(**more: torch.Tensor) -> Batch:
    return Batch(torch.zeros(COUNT, 1, 4, 4), torch.arange(COUNT), **more)


def value(data: View, recipe: Recipe, said: list[Outputs], given: Batch, step: int = 0) -> float:
    total, _ = Criterion(data, recipe, torch.device("cpu"))(said, given, step, len(given))
    return float(total)


def cross_entropy(said: Outputs, labels: np.ndarray) -> torch.Tensor:
    return functional.cross_entropy(said.logits, torch.from_numpy(labels), reduction="none")


def test_it_is_the_weighted_mean():
    data, said = view(), outputs(0)
    expected = (cross_entropy(said, data.labels) * torch.from_numpy(data.weights)).mean()
    assert value(data, RECIPE, [said], batch()) == pytest.approx(float(expected), rel=1e-6)


def test_parts_of_a_batch_add_up_to_the_whole():
    data, said = view(second_labels=np.array([0, 1, -1, -1, 0, 1, 0, -1])), outputs(0, second=2)
    lam = torch.linspace(0, 1, COUNT)
    given = batch(partner=torch.arange(COUNT).flip(0), share=lam)
    criterion = Criterion(data, RECIPE, torch.device("cpu"))
    whole, _ = criterion([said], given, 0, COUNT)
    parts = [Outputs(*each) for each in zip(*(part.tensor_split(3) for part in said), strict=True)]
    summed = sum(criterion([own], part, 0, COUNT)[0] for own, part in zip(parts, given.split(3), strict=True))
    torch.testing.assert_close(summed, whole)


def test_mixed_images_have_the_labels_and_weights_of_both():
    data, said = view(), outputs(0)
    partner, lam = torch.arange(COUNT).roll(1), torch.linspace(0, 1, COUNT)
    weights = torch.from_numpy(data.weights)
    own = cross_entropy(said, data.labels) * weights
    other = cross_entropy(said, data.labels[partner.numpy()]) * weights[partner]
    expected = (lam * own + (1 - lam) * other).mean()
    assert value(data, RECIPE, [said], batch(partner=partner, share=lam)) == pytest.approx(float(expected))


def test_class_weights_come_in_where_they_are_deferred_to():
    recipe = replace(RECIPE, class_weighting="balanced", deferred=0.5)
    data, said = view(), outputs(0)
    plain = value(data, RECIPE, [said], batch())
    weighted = value(data, replace(RECIPE, class_weighting="balanced"), [said], batch())
    assert plain != pytest.approx(weighted)
    assert value(data, recipe, [said], batch(), step=49) == plain
    assert value(data, recipe, [said], batch(), step=50) == weighted


def test_a_second_label_that_is_not_known_counts_nothing():
    known = np.array([1, 0, 1, -1, -1, -1, -1, -1])
    data, said = view(second_labels=known), outputs(0, second=2)
    recipe = replace(RECIPE, second_weight=0.5)
    own = functional.cross_entropy(said.second[:3], torch.from_numpy(known[:3]), reduction="none")
    expected = value(view(), RECIPE, [said], batch())
    expected += 0.5 * float((own * torch.from_numpy(data.weights[:3])).sum()) / COUNT
    assert value(data, recipe, [said], batch()) == pytest.approx(expected, rel=1e-6)
    none = view(second_labels=np.full(COUNT, -1))
    assert value(none, recipe, [said], batch()) == value(view(), recipe, [said], batch())


@pytest.mark.parametrize(("step", "left_out"), [(0, 0), (10, 2), (20, 4), (99, 4)])
def test_each_of_two_learns_what_the_other_finds_easy(step: int, left_out: int):
    recipe = replace(RECIPE, loss="co_teaching", loss_options=LossOptions(forget_rate=0.5))
    data, pair = view(), [outputs(1), outputs(2)]
    losses = [cross_entropy(said, data.labels).numpy() for said in pair]
    kept = COUNT - left_out
    expected = sum(
        (own * data.weights)[np.argsort(other)[:kept]].mean()
        for own, other in zip(losses, losses[::-1], strict=True)
    )
    total, own = Criterion(data, recipe, torch.device("cpu"))(pair, batch(), step, COUNT)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    chosen = np.argsort(losses[1])[:kept]
    assert float(own) == pytest.approx((losses[0] * data.weights)[chosen].mean(), rel=1e-5)


def test_coral_compares_features_with_those_of_unlabelled_images():
    recipe, said = replace(RECIPE, coral=2.0), outputs(0, rows=2 * COUNT)
    given = batch(unlabeled=torch.zeros(COUNT, 1, 4, 4))
    alone = Outputs(said.features[:COUNT], said.logits[:COUNT], None)
    ours, others = said.features.numpy()[:COUNT], said.features.numpy()[COUNT:]
    apart = ((np.cov(ours.T) - np.cov(others.T)) ** 2).sum() / (4 * 5**2)
    expected = value(view(), RECIPE, [alone], batch()) + 2.0 * apart
    assert value(view(), recipe, [said], given) == pytest.approx(expected, rel=1e-5)
