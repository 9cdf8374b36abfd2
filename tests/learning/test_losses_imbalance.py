from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from stages.dataset.base import View
from stages.learning.losses import LDAM, BalancedSoftmax, Focal, class_weighted, log_shares, margins

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
