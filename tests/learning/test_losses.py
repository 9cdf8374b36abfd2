"""Losses for skewed classes and for wrong labels against their papers' formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.losses import (
    LDAM,
    BalancedSoftmax,
    EarlyLearning,
    Focal,
    ForwardCorrection,
    GeneralisedCrossEntropy,
    SymmetricCrossEntropy,
    checked_transition,
    class_weighted,
    log_shares,
    margins,
)

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * 2

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])

PROBS = np.exp(LOGITS.double().numpy()) / np.exp(LOGITS.double().numpy()).sum(1, keepdims=True)

OWN = PROBS[np.arange(6), LABELS.numpy()]


def view_of(counts: list[int]) -> View:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = np.arange(len(labels)).astype(object)
    images = np.zeros((len(labels), 4, 4, 1), np.uint8)
    return View(images, labels, np.ones(len(labels), np.float32), names, [str(n) for n in range(len(counts))])


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_is_the_papers_formula(gamma: float):
    expected = -((1 - OWN) ** gamma) * np.log(OWN)
    np.testing.assert_allclose(Focal(gamma)(LOGITS, LABELS, LABELS), expected, rtol=1e-4)
    smoothed = 0.8 * expected + 0.2 * (-((1 - PROBS) ** gamma) * np.log(PROBS)).mean(1)
    np.testing.assert_allclose(Focal(gamma, 0.2)(LOGITS, LABELS, LABELS), smoothed, rtol=1e-4)


def test_balanced_softmax_is_the_papers_formula():
    counts = np.array([60, 30, 10])
    moved = counts * PROBS
    expected = -np.log(moved[np.arange(6), LABELS] / moved.sum(1))
    objective = BalancedSoftmax(log_shares(view_of(counts.tolist()), "shuffle"))
    np.testing.assert_allclose(objective(LOGITS, LABELS, LABELS), expected, rtol=1e-4)


def test_margins_fall_with_the_fourth_root_of_the_class_size():
    np.testing.assert_allclose(margins(view_of([160, 10, 810]), 0.5), [0.25, 0.5, 0.5 / 3], rtol=1e-6)


def test_margins_do_not_go_by_class_weights_nor_by_images_that_weigh_nothing():
    view = view_of([160, 10])
    weighted = class_weighted(view, "balanced")
    np.testing.assert_allclose(margins(weighted, 0.5), margins(view, 0.5), rtol=1e-5)
    weights = view.weights.copy()
    weights[10:160] = 0
    np.testing.assert_allclose(margins(replace(view, weights=weights), 0.5), [0.5, 0.5], rtol=1e-6)


def test_a_class_without_images_has_the_largest_margin():
    np.testing.assert_allclose(margins(view_of([160, 0, 10]), 0.5), [0.25, 0.5, 0.5], rtol=1e-6)


def test_ldam_is_the_papers_formula_for_logits_that_are_scaled_cosines():
    wide = torch.tensor([0.2, 0.3, 0.5])
    cosines = LOGITS / 10
    objective = LDAM(wide, scale=30.0)
    asked = cosines - torch.nn.functional.one_hot(LABELS, 3) * wide
    expected = functional.cross_entropy(30 * asked, LABELS, reduction="none")
    torch.testing.assert_close(objective(30 * cosines, LABELS, LABELS), expected)


def test_smoothing_of_ldam_is_of_the_models_own_logits():
    objective = LDAM(torch.tensor([0.2, 0.3, 0.5]), 30.0, smoothing=1.0)
    expected = -functional.log_softmax(LOGITS, 1).mean(1)
    torch.testing.assert_close(objective(LOGITS, LABELS, LABELS), expected)


INDEX = torch.tensor([4, 0, 3, 1, 2, 5])


def of(objective: torch.nn.Module, index: torch.Tensor = INDEX) -> np.ndarray:
    return objective(LOGITS, LABELS, index).numpy()


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalised_cross_entropy_is_the_papers_formula(q: float):
    np.testing.assert_allclose(of(GeneralisedCrossEntropy(q)), (1 - OWN**q) / q, rtol=1e-5)
    smoothed = 0.8 * (1 - OWN**q) / q + 0.2 * ((1 - PROBS**q) / q).mean(1)
    np.testing.assert_allclose(of(GeneralisedCrossEntropy(q, 0.2)), smoothed, rtol=1e-5)


def test_symmetric_cross_entropy_is_the_published_code():
    one_hot = np.clip(np.eye(3)[LABELS], 1e-4, 1)
    expected = 0.1 * -np.log(OWN) - 2.0 * (PROBS * np.log(one_hot)).sum(1)
    np.testing.assert_allclose(of(SymmetricCrossEntropy(0.1, 2.0)), expected, rtol=1e-5)


def test_forward_correction_looks_at_given_labels_through_the_matrix():
    matrix = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    given = PROBS @ matrix
    expected = -np.log(given[np.arange(6), LABELS])
    np.testing.assert_allclose(of(ForwardCorrection(matrix)), expected, rtol=1e-5)
    smoothed = 0.9 * expected - 0.1 * np.log(given).mean(1)
    np.testing.assert_allclose(of(ForwardCorrection(matrix, 0.1)), smoothed, rtol=1e-5)


def test_forward_correction_finds_the_true_shares_behind_wrong_labels():
    """Minimised over one distribution for all images, it is the true classes' and not the labels'."""
    matrix = np.array([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.0, 0.2, 0.8]])
    given = np.array([0.5, 0.3, 0.2]) @ matrix
    labels = torch.from_numpy(np.repeat([0, 1, 2], np.round(given * 1000).astype(int)))
    logits = torch.zeros(3, requires_grad=True)
    objective, optimiser = ForwardCorrection(matrix), torch.optim.LBFGS([logits], max_iter=100)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = objective(logits.expand(len(labels), 3), labels, labels).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    np.testing.assert_allclose(logits.detach().softmax(0), [0.5, 0.3, 0.2], atol=2e-3)


def test_a_class_without_support_counts_as_never_mislabelled():
    matrix = checked_transition(np.array([[3.0, 1, 0], [0, 0, 0], [np.nan, 0, 0]]), 3)
    np.testing.assert_allclose(matrix, [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1]])


def test_no_label_is_impossible():
    matrix = checked_transition(np.array([[0.0, 1.0], [0.0, 1.0]]), 2)
    logits = torch.tensor([[9.0, -9.0]], requires_grad=True)
    loss = ForwardCorrection(matrix)(logits, torch.tensor([0]), torch.tensor([0])).sum()
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    np.testing.assert_allclose(matrix.sum(1), 1)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (None, "forward_correction' needs the transition matrix.*dvc repro detect_noise"),
        (np.eye(2), r"shape \(2, 2\), and there are 3 classes"),
        (np.eye(3) - 0.1, "negative entries"),
    ],
)
def test_a_matrix_that_does_not_fit_says_what_to_do(matrix: np.ndarray | None, message: str):
    with pytest.raises(WinnowError, match=message):
        checked_transition(matrix, 3)


def test_early_learning_is_the_published_code():
    objective = EarlyLearning(6, 3, strength=3.0, decay=0.7)
    clamped = np.clip(PROBS, 1e-4, 1 - 1e-4)
    memory = np.zeros((6, 3))
    for _ in range(2):
        memory = 0.7 * memory + 0.3 * clamped / clamped.sum(1, keepdims=True)
        expected = -np.log(OWN) + 3 * np.log(1 - (memory * clamped).sum(1))
        np.testing.assert_allclose(of(objective), expected, rtol=1e-4)
    np.testing.assert_allclose(objective.memory[INDEX].numpy(), memory, rtol=1e-5)


def test_early_learning_remembers_each_image_by_its_index_alone():
    objective = EarlyLearning(10, 3, strength=3.0, decay=0.7)
    of(objective, INDEX + 4)
    assert (objective.memory[:4] == 0).all()
    assert (objective.memory[4:].sum(1) > 0).all()


def test_an_image_that_is_drawn_twice_remembers_the_mean_of_both():
    objective = EarlyLearning(2, 3, strength=3.0, decay=0.5)
    logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
    objective(logits, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]))
    np.testing.assert_allclose(
        objective.memory, 0.5 * torch.stack([logits[:2].softmax(1).mean(0), logits[2].softmax(0)]), rtol=1e-5
    )


def test_early_learning_pulls_towards_what_was_said_before():
    objective = EarlyLearning(1, 3, strength=5.0, decay=0.7)
    label = index = torch.tensor([0])
    for _ in range(5):
        objective(torch.tensor([[0.0, 3.0, 0.0]]), label, index)  # the model believed in class 1
    logits = torch.tensor([[0.0, 0.5, 0.0]], requires_grad=True)
    objective(logits, label, index).sum().backward()
    plain = torch.tensor([[0.0, 0.5, 0.0]], requires_grad=True)
    torch.nn.functional.cross_entropy(plain, label).backward()
    assert logits.grad is not None
    assert plain.grad is not None
    assert logits.grad[0, 1] < plain.grad[0, 1]
