"""The losses by their names: what is true of all of them."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.loop import fit
from stages.learning.losses import EarlyLearning, make_objective
from stages.learning.models import build_model
from stages.learning.names import Loss
from stages.learning.networks.layers import ModelSpec
from stages.learning.recipe import LossOptions, Recipe

CLASSES = 4
TRANSITION = np.full((CLASSES, CLASSES), 0.1) + 0.6 * np.eye(CLASSES)
RECIPE = Recipe(epochs=1, steps_per_epoch=2, batch_size=8, learning_rate=0.1)


def view_of(labels: np.ndarray) -> View:
    count = len(labels)
    images = np.zeros((count, 4, 4, 1), np.uint8)
    return View(images, labels, np.ones(count, np.float32), np.arange(count).astype(object), list("abcd"))


@pytest.fixture
def data() -> View:
    return view_of(np.repeat([0, 1, 2, 3], [24, 12, 6, 3]))


def batch(data: View, size: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(data), generator=generator)[:size]
    logits = 2 * torch.randn(size, CLASSES, generator=generator)
    return logits, torch.from_numpy(data.labels)[index], index


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", get_args(Loss))
def test_every_loss_trains_two_steps(name: Loss, smoothing: float, data: View):
    recipe = replace(RECIPE, loss=name, label_smoothing=smoothing)
    objective = make_objective(recipe, data, TRANSITION)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    inputs = torch.randn(8, 5)
    _, labels, index = batch(data)
    taken = []
    for _ in range(3):
        losses = objective(network(inputs), labels, index)
        assert (losses.shape, losses.dtype) == ((8,), torch.float32)
        taken.append(losses.mean().item())
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
    assert np.isfinite(taken).all()
    assert taken[2] < taken[1] < taken[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", get_args(Loss))
def test_extreme_logits_give_finite_losses_and_gradients(name: Loss, smoothing: float, data: View):
    objective = make_objective(replace(RECIPE, loss=name, label_smoothing=smoothing), data, np.eye(CLASSES))
    labels = torch.tensor([0, 1, 2, 3])
    for size in (1e4, -1e4):
        logits = (size * torch.eye(CLASSES)).requires_grad_()
        losses = objective(logits, labels, labels)
        losses.sum().backward()
        assert losses.isfinite().all()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", get_args(Loss))
def test_losses_are_computed_in_float32_under_autocast(name: Loss, data: View):
    recipe = replace(RECIPE, loss=name, label_smoothing=0.1)
    logits, labels, index = batch(data)
    logits = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = make_objective(recipe, data, TRANSITION)(logits, labels, index)
    outside = make_objective(recipe, data, TRANSITION)(logits.float(), labels, index)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    "choices",
    [
        {"loss": "co_teaching"},
        {"loss": "generalised_cross_entropy", "loss_options": LossOptions(gce_q=0.0)},
        {"loss": "generalised_cross_entropy", "loss_options": LossOptions(gce_q=1e-5)},
        {"loss": "symmetric_cross_entropy", "loss_options": LossOptions(sce_alpha=1.0, sce_beta=0.0)},
        {"loss": "forward_correction"},
        {"loss": "early_learning", "loss_options": LossOptions(elr_strength=0.0)},
        {"loss": "focal", "loss_options": LossOptions(focal_gamma=0.0)},
        {"loss": "ldam", "loss_options": LossOptions(ldam_margin=0.0)},
    ],
    ids=lambda choices: str(choices["loss"]),
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_loss_is_cross_entropy_in_its_limit(choices: dict, smoothing: float, data: View):
    logits, labels, index = batch(data)
    objective = make_objective(replace(RECIPE, label_smoothing=smoothing, **choices), data, np.eye(CLASSES))
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(objective(logits, labels, index), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", get_args(Loss))
def test_a_loss_that_is_saved_and_restored_goes_on_alike(name: Loss, data: View):
    recipe = replace(RECIPE, loss=name)
    one, other = (make_objective(recipe, data, TRANSITION) for _ in range(2))
    logits, labels, index = batch(data)
    one(logits, labels, index)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(-logits, labels, index), other(-logits, labels, index))


def test_only_early_learning_remembers_and_forgetting_would_show(data: View):
    recipe = replace(RECIPE, loss="early_learning")
    one, fresh = (make_objective(recipe, data) for _ in range(2))
    assert isinstance(one, EarlyLearning)
    assert one.memory.shape == (len(data), CLASSES)
    logits, labels, index = batch(data)
    one(logits, labels, index)
    assert not torch.equal(one(logits, labels, index), fresh(logits, labels, index))


def test_a_wrong_name_lists_the_right_ones(data: View):
    with pytest.raises(WinnowError, match="unknown loss 'hinge'") as caught:
        make_objective(replace(RECIPE, loss="hinge"), data)  # type: ignore[arg-type]
    assert all(name in str(caught.value) for name in get_args(Loss))


@pytest.mark.parametrize("name", get_args(Loss))
def test_every_loss_goes_through_the_training_loop(name: Loss, data: View):
    model = build_model(ModelSpec("small_cnn", data.classes, (4, 4, 1), [0.5], [0.5]), seed=0)
    before = model.head.weight.detach().clone()
    recipe = replace(RECIPE, loss=name, class_weighting="effective", deferred=0.5, precision="fp32")
    result = fit(model, data, recipe, seed=0, device="cpu", description="", transition=TRANSITION)
    assert np.isfinite(result.history[0]["train_loss"])
    assert not torch.equal(result.model.head.weight, before)
