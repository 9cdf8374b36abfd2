"""Optimiser, schedule, penalties and clipping together."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.errors import WinnowError
from stages.learning.names import Optimiser, Schedule
from stages.learning.optimisers import Optimisation
from stages.learning.recipe import Recipe

RECIPE = Recipe(epochs=2, steps_per_epoch=5, batch_size=8, learning_rate=0.01)
PLAIN = replace(
    RECIPE, optimiser="sgd", momentum=0.0, schedule="constant", warm_up=0.0, weight_decay=0.0, clip_norm=None
)
INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 3


class Network(nn.Module):
    """Backbone and head, as classifiers have them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)]
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.head(self.backbone(inputs))
        return result


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    def linear_layers(backbone: nn.Module) -> list[nn.Module]:
        return [layer for layer in backbone.children() if isinstance(layer, nn.Linear)]

    monkeypatch.setattr("stages.learning.networks.zoo.stages_of", linear_layers, raising=False)


def optimisation(recipe: Recipe, *models: Any) -> Optimisation:
    return Optimisation(list(models), recipe)


def train(model: Network, steps: Optimisation, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        loss = nn.functional.cross_entropy(model(INPUTS), LABELS)
        losses.append(loss.item())
        loss.backward()
        steps.apply()
    return losses


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def given_gradient(model: Network, value: float) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("optimiser", get_args(Optimiser))
def test_every_optimiser_and_schedule_trains_two_steps(optimiser: Optimiser, schedule: Schedule):
    model = Network()
    losses = train(model, optimisation(replace(RECIPE, optimiser=optimiser, schedule=schedule), model), 3)
    assert np.isfinite(losses).all()
    assert losses[2] < losses[1] < losses[0]
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("optimiser", get_args(Optimiser))
def test_a_training_that_is_continued_goes_on_to_the_bit(optimiser: Optimiser):
    recipe = replace(RECIPE, optimiser=optimiser, l1=1e-4, l2=1e-3)
    whole = Network()
    train(whole, optimisation(recipe, whole), 9)
    first = Network()
    steps = optimisation(recipe, first)
    train(first, steps, 4)
    second = Network(seed=1)
    second.load_state_dict(first.state_dict())
    continued = optimisation(recipe, second)
    continued.load_state_dict(steps.state_dict())
    assert continued.rate == steps.rate
    train(second, continued, 5)
    assert torch.equal(flat(second), flat(whole))


@pytest.mark.parametrize("optimiser", get_args(Optimiser))
def test_the_state_holds_what_torch_loads_without_unpickling(optimiser: Optimiser, tmp_path: Any):
    model = Network()
    steps = optimisation(replace(RECIPE, optimiser=optimiser), model)
    train(model, steps, 2)
    torch.save(steps.state_dict(), tmp_path / "state.pt")
    steps.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(model, steps, 1)
    assert flat(model).isfinite().all()


def test_adamw_is_torchs_own():
    model, other = Network(), Network()
    train(model, optimisation(replace(RECIPE, schedule="constant", warm_up=0.0, clip_norm=None), model), 5)
    reference = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(5):
        nn.functional.cross_entropy(other(INPUTS), LABELS).backward()
        reference.step()
        reference.zero_grad()
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-4, atol=1e-6)


def test_channels_last_kernels_move_as_contiguous_ones():
    def moved(memory: torch.memory_format) -> Tensor:
        torch.manual_seed(0)
        model = Network()
        model.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
        model.head = nn.Linear(8 * 4, 3)
        model.to(memory_format=memory)  # type: ignore[call-overload]
        steps = optimisation(replace(RECIPE, schedule="constant"), model)
        images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            nn.functional.cross_entropy(model(images.contiguous(memory_format=memory)), LABELS[:6]).backward()
            steps.apply()
        return flat(model)

    torch.testing.assert_close(
        moved(torch.channels_last), moved(torch.contiguous_format), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("optimiser", get_args(Optimiser))
def test_weight_decay_is_decoupled_from_the_gradient(optimiser: Optimiser):
    recipe = replace(PLAIN, optimiser=optimiser, weight_decay=0.5)
    model = Network()
    before = flat(model)
    steps = optimisation(recipe, model)
    given_gradient(model, 0.0)
    steps.apply()
    torch.testing.assert_close(flat(model), before * (1 - 0.01 * 0.5))


def test_l1_and_l2_are_gradients_of_the_penalties():
    model = Network()
    before = flat(model)
    steps = optimisation(replace(PLAIN, l1=0.1, l2=0.2), model)
    given_gradient(model, 1.0)
    steps.apply()
    torch.testing.assert_close(flat(model), before - 0.01 * (1 + 0.1 * before.sign() + 0.2 * before))


def test_gradients_are_cut_to_the_value_and_then_scaled_to_the_norm():
    model = Network()
    before = flat(model)
    steps = optimisation(replace(PLAIN, clip_value=0.5), model)
    given_gradient(model, 3.0)
    steps.apply()
    torch.testing.assert_close(before - flat(model), torch.full_like(before, 0.005))
    before = flat(model)
    steps = optimisation(replace(PLAIN, clip_norm=2.0), model)
    given_gradient(model, 3.0)
    steps.apply()
    assert (before - flat(model)).norm() / 0.01 == pytest.approx(2, rel=1e-3)


def test_penalties_are_clipped_with_the_gradient_they_belong_to():
    model = Network()
    before = flat(model)
    steps = optimisation(replace(PLAIN, l1=5.0, clip_value=1.0), model)
    given_gradient(model, 0.0)
    steps.apply()
    torch.testing.assert_close(flat(model), before - 0.01 * before.sign())


def test_models_that_train_side_by_side_are_clipped_each_by_itself():
    recipe = replace(PLAIN, clip_norm=1.0)
    calm, wild, alone = Network(), Network(seed=1), Network()
    together = optimisation(recipe, calm, wild)
    given_gradient(calm, 0.01)
    given_gradient(wild, 100.0)
    together.apply()
    by_itself = optimisation(recipe, alone)
    given_gradient(alone, 0.01)
    by_itself.apply()
    assert torch.equal(flat(calm), flat(alone))


def test_gradients_are_forgotten_after_a_step():
    model = Network()
    steps = optimisation(RECIPE, model)
    train(model, steps, 1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_rate_is_the_schedules_in_the_next_step():
    model = Network()
    steps = optimisation(replace(RECIPE, schedule="step", warm_up=0.0), model)
    rates = []
    for _ in range(10):
        rates.append(steps.rate)
        train(model, steps, 1)
    assert rates == pytest.approx([0.01] * 6 + [0.001] * 2 + [0.0001] * 2)


def steps_of(model: Network, recipe: Recipe) -> list[float]:
    """How far one step of SGD along a gradient of ones moves each linear layer, as shares of the rate."""
    layers = [layer for layer in model.backbone if isinstance(layer, nn.Linear)] + [model.head]
    before = [layer.weight.detach().clone() for layer in layers]
    steps = optimisation(recipe, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    steps.apply()
    return [
        (old - layer.weight.detach()).mean().item() / 0.01 for old, layer in zip(before, layers, strict=True)
    ]


def test_rates_fall_from_the_head_down_stage_by_stage(stages: None):
    recipe = replace(PLAIN, backbone_lr_factor=0.5, layer_decay=0.1)
    assert steps_of(Network(), recipe) == pytest.approx([0.005, 0.05, 0.5, 1], rel=1e-3)


def test_frozen_stages_are_the_first_ones_and_the_others_have_one_rate(stages: None):
    model = Network()
    assert steps_of(model, replace(PLAIN, frozen_stages=2)) == pytest.approx([0, 0, 1, 1], rel=1e-3)
    assert not model.backbone[0].weight.requires_grad
    assert steps_of(model, replace(PLAIN, frozen_stages=9)) == pytest.approx([0, 0, 0, 1], rel=1e-3)
    # The next training decides anew.
    assert steps_of(model, PLAIN) == pytest.approx([1, 1, 1, 1], rel=1e-3)


def test_a_backbone_without_a_rate_is_frozen():
    model = Network()
    assert steps_of(model, replace(PLAIN, backbone_lr_factor=0.0)) == pytest.approx([0, 0, 0, 1], rel=1e-3)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_a_second_head_learns_at_the_heads_rate():
    model = Network()
    model.second_head = nn.Linear(4, 2)
    before = model.second_head.weight.detach().clone()
    steps_of(model, replace(PLAIN, backbone_lr_factor=0.1))
    torch.testing.assert_close(before - model.second_head.weight.detach(), torch.full((2, 4), 0.01))


def test_muon_leaves_the_head_and_vectors_to_adamw():
    model = Network()
    names = dict(model.named_parameters())
    state = optimisation(replace(RECIPE, optimiser="muon"), model).state_dict()
    sizes = [sum(len(group["params"]) for group in one["param_groups"]) for one in state["optimisers"]]
    assert sizes == [3, len(names) - 3]


def test_muon_with_a_frozen_backbone_has_nothing_left_but_adamws():
    model = Network()
    recipe = replace(RECIPE, optimiser="muon", backbone_lr_factor=0.0)
    assert len(optimisation(recipe, model).state_dict()["optimisers"]) == 1


@pytest.mark.parametrize(
    ("choices", "names"), [({"optimiser": "lion"}, Optimiser), ({"schedule": "zigzag"}, Schedule)]
)
def test_a_wrong_name_lists_the_right_ones(choices: dict, names: Any):
    with pytest.raises(WinnowError, match="unknown") as caught:
        optimisation(replace(RECIPE, **choices), Network())
    assert all(name in str(caught.value) for name in get_args(names))


class Normalised(Network):
    """With biases of normalisation, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.insert(1, nn.BatchNorm1d(8))
        self.backbone.insert(5, nn.LayerNorm(4))


@pytest.mark.parametrize("optimiser", get_args(Optimiser))
def test_biases_of_normalisation_learn_faster_and_decay_as_fast(optimiser: Optimiser):
    """Momentum of none, so that the first step's length is the rate's; decay alone where gradients are 0."""
    moved = {}
    for gradient, factor in [(1.0, 1.0), (1.0, 4.0), (0.0, 1.0), (0.0, 4.0)]:
        model = Normalised()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        recipe = replace(
            PLAIN, optimiser=optimiser, norm_bias_factor=factor, weight_decay=0.0 if gradient else 0.5
        )
        steps = optimisation(recipe, model)
        given_gradient(model, gradient)
        steps.apply()
        biases = {id(model.backbone[1].bias), id(model.backbone[5].bias)}
        moved[gradient, factor] = [
            torch.cat([1 - p.detach().flatten() for p in model.parameters() if (id(p) in biases) == inside])
            for inside in (True, False)
        ]
    torch.testing.assert_close(moved[1.0, 4.0][0], 4 * moved[1.0, 1.0][0])
    torch.testing.assert_close(moved[1.0, 4.0][1], moved[1.0, 1.0][1])
    assert (moved[0.0, 1.0][0] > 0).all()
    torch.testing.assert_close(moved[0.0, 4.0][0], moved[0.0, 1.0][0])


def test_raised_biases_are_those_of_frozen_stages_no_more_than_others(stages: None):
    model = Normalised()
    Optimisation([model], replace(PLAIN, norm_bias_factor=4.0, backbone_lr_factor=0.0))  # type: ignore[list-item]
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
