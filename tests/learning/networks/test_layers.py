from typing import get_args

import pytest
import torch
from torch import nn

from stages.errors import WinnowError
from stages.learning.names import Activation, Initialisation, Normalisation
from stages.learning.networks.layers import (
    Layers,
    Residual,
    StochasticDepth,
    activation,
    chances,
    convolution,
    draw,
    dropout,
    gain,
    initialise,
    linear,
    normalisation,
)


def drawn(module: nn.Module, seed: int = 0, **layers) -> nn.Module:
    torch.manual_seed(seed)
    initialise(module, Layers(**layers))
    return module


@pytest.mark.parametrize("name", get_args(Activation))
def test_a_gain_undoes_what_its_activation_takes(name):
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    if name == "sigmoid":
        values = torch.zeros(1, requires_grad=True)
        activation(name)(values).backward()
        assert gain(name) * values.grad.item() == pytest.approx(1.0)
    elif name == "tanh":
        assert gain(name) == pytest.approx(nn.init.calculate_gain("tanh"))
    else:
        moment = (gain(name) * activation(name)(values.clone())).square().mean().item()
        assert moment == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: activation("swish"), get_args(Activation)),
        (lambda: gain("swish"), get_args(Activation)),
        (lambda: normalisation("instance", 4, maps=True), get_args(Normalisation)),
        (lambda: draw(torch.empty(2, 2), "zeros", 1.0), get_args(Initialisation)[1:]),
    ],
)
def test_a_wrong_name_lists_the_right_ones(call, names):
    with pytest.raises(WinnowError, match=", ".join(names)):
        call()


def test_he_draws_as_wide_as_activation_and_inputs_ask_for():
    weight = drawn(nn.Conv2d(64, 256, 3), initialisation="he").weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert drawn(nn.Linear(500, 500), initialisation="he", activation="silu").weight.std().item() == (
        pytest.approx(gain("silu") / 500**0.5, rel=0.02)
    )


def test_xavier_is_uniform_between_inputs_and_outputs():
    weight = drawn(nn.Linear(300, 100), initialisation="xavier", activation="tanh").weight
    bound = 5 / 3 * (6 / 400) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_orthogonal_rows_are_orthogonal():
    weight = drawn(nn.Conv2d(8, 16, 3), initialisation="orthogonal").weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "same_as"), [("relu", "he"), ("gelu", "he"), ("tanh", "xavier")])
def test_auto_fits_the_activation(name, same_as):
    made = [
        drawn(nn.Linear(8, 8), activation=name, normalisation="none", initialisation=how)
        for how in ("auto", same_as)
    ]
    assert torch.equal(made[0].weight, made[1].weight)
    assert made[0].bias.eq(0).all()


def test_auto_leaves_the_scale_to_a_normalisation():
    module = nn.Linear(8, 8)
    before = module.weight.clone()
    assert torch.equal(drawn(module).weight, before)
    assert not torch.equal(drawn(module, activation="sigmoid").weight, before)


@pytest.mark.parametrize(
    ("name", "together"),
    [("batch", (0, 2, 3)), ("layer", (1, 2, 3))],
)
def test_maps_are_normalised_over_their_own_axes(name, together):
    maps = torch.randn(8, 16, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    out = normalisation(name, 16, maps=True)(maps)
    torch.testing.assert_close(out.mean(together), torch.zeros_like(out.mean(together)), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(together, correction=0), torch.ones_like(out.mean(together)))


def test_groups_are_normalised_each_by_itself():
    maps = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    grouped = normalisation("group", 16, maps=True)(maps).view(2, 8, 2, 5, 5)
    torch.testing.assert_close(grouped.mean((2, 3, 4)), torch.zeros(2, 8), atol=1e-5, rtol=0)
    normalisation("group", 6, maps=True)(maps[:, :6])  # eight groups do not divide six channels


@pytest.mark.parametrize("name", get_args(Normalisation))
def test_layers_have_a_bias_where_nothing_normalises(name):
    layers = Layers(normalisation=name)
    vectors = linear(6, 10, layers)
    assert vectors(torch.randn(4, 6)).shape == (4, 10)
    assert convolution(3, 10, layers, stride=2)(torch.randn(4, 3, 8, 8)).shape == (4, 10, 4, 4)
    assert (vectors[0].bias is not None) == (name == "none")


def test_stochastic_depth_skips_whole_samples_and_keeps_the_mean():
    depth, branch = StochasticDepth(0.25), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    out = depth(branch)
    kept = out.amax((1, 2)) > 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(out[kept], branch[kept] / 0.75)
    assert out[~kept].eq(0).all()
    assert torch.equal(depth.eval()(branch), branch)
    assert chances(Layers(stochastic_depth=0.4), 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_dropout_zeroes_features_in_training_alone():
    torch.manual_seed(0)
    module, ones = dropout(0.5), torch.ones(1000)
    assert module(ones).eq(0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(module.eval()(ones), ones)
    assert torch.equal(dropout(0.0)(ones), ones)


def test_a_residual_adds_what_went_in():
    values = torch.randn(3, 4)
    inner = nn.Linear(4, 4)
    torch.testing.assert_close(Residual(inner)(values), values + inner(values))
