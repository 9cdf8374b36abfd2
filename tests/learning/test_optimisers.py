"""Averages of weights, Muon, and schedules."""

import copy
import math
from typing import get_args

import pytest
import torch
from torch import nn

from stages.errors import WinnowError
from stages.learning.names import Schedule
from stages.learning.optimisers import (
    Lookahead,
    MovingAverage,
    Muon,
    matrices_of,
    orthogonalised,
    share_of_peak,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def wander(model: nn.Module, seed: int) -> None:
    """Other weights and other statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


@pytest.mark.parametrize("decay", [0.15, 0.9])
def test_weights_and_statistics_are_averaged_and_counts_copied(decay: float):
    model = network()
    average = MovingAverage(model, decay)
    expected: dict[str, torch.Tensor] = {}
    for step in range(6):
        wander(model, step)
        average.update_parameters(model)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        keep = min(decay, (1 + step) / (10 + step))
        expected = state if step == 0 else {
            name: keep * expected[name] + (1 - keep) * value for name, value in state.items()
        }  # fmt: skip
    result = average.module.state_dict()
    assert result["1.num_batches_tracked"] == model.state_dict()["1.num_batches_tracked"] == 6
    for name in expected.keys() - {"1.num_batches_tracked"}:
        torch.testing.assert_close(result[name], expected[name])


def test_the_average_is_a_copy_that_does_not_learn():
    model = network()
    before = copy.deepcopy(model.state_dict())
    average = MovingAverage(model, 0.9)
    wander(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in average.module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_average_that_is_saved_and_restored_goes_on_alike():
    model = network()
    one = MovingAverage(model, 0.9)
    for step in range(3):
        wander(model, step)
        one.update_parameters(model)
    other = MovingAverage(network(), 0.9)
    other.load_state_dict(one.state_dict())
    wander(model, 9)
    for average in (one, other):
        average.update_parameters(model)
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_lookahead_draws_weights_back_and_leaves_the_slow_ones():
    """By hand, for one weight that goes up by one a step: every second of five steps, then the end."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    lookahead = Lookahead(model, every=2, total=5)
    fast, slow = 0.0, 0.0
    for step in range(1, 6):
        with torch.no_grad():
            model.weight += 1
        fast += 1
        if step % 2 == 0:
            keep = 0.95**2 * (step / 5) ** 3
            slow = keep * slow + (1 - keep) * fast
            fast = slow
        lookahead.after(step)
        if step < 5:
            assert model.weight.item() == pytest.approx(fast)
    assert model.weight.item() == pytest.approx(slow)


def test_lookahead_treats_batch_statistics_likewise_and_leaves_counts():
    model = network()
    lookahead = Lookahead(model, every=1, total=2)
    before = model.state_dict()["1.running_mean"].clone()
    wander(model, 0)
    wandered = model.state_dict()["1.running_mean"].clone()
    lookahead.after(1)
    keep = 0.95 / 8
    torch.testing.assert_close(model.state_dict()["1.running_mean"], keep * before + (1 - keep) * wandered)
    assert model.state_dict()["1.num_batches_tracked"] == 1


def test_lookahead_that_is_saved_and_restored_goes_on_alike():
    model, again = network(), network()
    one, other = Lookahead(model, every=1, total=9), Lookahead(again, every=1, total=9)
    wander(model, 0)
    one.after(1)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(one.state_dict())
    for each, its in ((model, one), (again, other)):
        wander(each, 1)
        its.after(2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_singular_values_come_near_one_and_singular_vectors_stay():
    matrices = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(0))
    for batch in (matrices, matrices.mT.contiguous()):
        result = orthogonalised(batch)
        assert (result.shape, result.dtype) == (batch.shape, torch.float32)
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.5
        assert values.max() < 1.3
        u, _, v = torch.linalg.svd(batch, full_matrices=False)
        cosine = (result * (u @ v)).sum((1, 2)) / result.norm(dim=(1, 2)) / (u @ v).norm(dim=(1, 2))
        assert (cosine > 0.95).all()


def test_a_gradient_of_zeros_moves_nothing():
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_a_kernel_moves_as_the_matrix_it_is_whatever_its_memory_and_its_company():
    values = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(3, 8, 3, 3, 3, generator=torch.Generator().manual_seed(1))

    def moved(
        *shapes: tuple[int, ...], memory: torch.memory_format = torch.contiguous_format
    ) -> torch.Tensor:
        own = [nn.Parameter(values.clone().reshape(shape)) for shape in shapes]
        if len(shapes[0]) == 4:
            own[0] = nn.Parameter(own[0].detach().to(memory_format=memory))
        optimiser = Muon([{"params": own, "lr": 0.1}], momentum=0.9, weight_decay=0.5)
        for gradient in gradients:
            for parameter in own:
                parameter.grad = gradient.reshape(parameter.shape).clone()
            optimiser.step()
        return own[0].detach().reshape(8, 27)

    alone = moved((8, 27))
    assert not torch.equal(alone, values.reshape(8, 27))
    torch.testing.assert_close(moved((8, 3, 3, 3)), alone)
    torch.testing.assert_close(moved((8, 3, 3, 3), memory=torch.channels_last), alone)
    torch.testing.assert_close(moved((8, 27), (8, 3, 3, 3), (8, 27)), alone)


def test_a_step_is_as_long_as_adams():
    weight = nn.Parameter(torch.zeros(64, 128))
    weight.grad = 1e-3 * torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [weight], "lr": 0.1}], momentum=0.9, weight_decay=0.0).step()
    assert 0.1 < weight.detach().square().mean().sqrt() / 0.1 < 0.3


def test_it_decays_weights_by_rate_times_decay():
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([{"params": [weight], "lr": 0.1}], momentum=0.9, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def test_matrices_are_what_multiplies_and_not_what_is_looked_up():
    network = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "convolution": nn.Conv2d(3, 4, 3),
            "norm": nn.LayerNorm((4, 4)),
            "linear": nn.Linear(4, 4),
            "recurrent": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
        }
    )
    network.register_parameter("token", nn.Parameter(torch.zeros(1, 1, 4)))
    chosen = {id(parameter) for parameter in matrices_of(network)}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in chosen}
    assert names == {
        "convolution.weight",
        "linear.weight",
        "recurrent.weight_ih_l0",
        "recurrent.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }


@pytest.mark.parametrize("name", get_args(Schedule))
@pytest.mark.parametrize("total", [1, 2, 3, 5, 10, 1000])
@pytest.mark.parametrize("warm_up", [0.0, 0.2, 0.99])
def test_rates_are_shares_of_the_peak_for_any_budget(name: Schedule, total: int, warm_up: float):
    rates = [share_of_peak(name, step, total, warm_up) for step in range(total + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates) >= 0.1  # also a single step moves something


@pytest.mark.parametrize("total", [2, 3, 5, 10, 1000])
def test_one_cycle_rises_to_its_peak_and_falls_to_nothing(total: int):
    rates = [share_of_peak("one_cycle", step, total, 0.2) for step in range(total + 1)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_one_cycle_has_its_peak_where_warm_up_ends():
    assert share_of_peak("one_cycle", 200, 1000, 0.2) == 1
    assert share_of_peak("one_cycle", 100, 1000, 0.2) == pytest.approx(0.55)
    assert share_of_peak("one_cycle", 600, 1000, 0.2) == pytest.approx(0.5)


def test_cosine_is_half_a_cosine_over_the_whole_budget():
    rates = [share_of_peak("cosine", step, 100, 0.0) for step in range(101)]
    assert rates == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 100) for step in range(101)])


def test_step_goes_down_to_a_tenth_twice():
    rates = [share_of_peak("step", step, 10, 0.0) for step in range(10)]
    assert rates == pytest.approx([1] * 6 + [0.1] * 2 + [0.01] * 2)


@pytest.mark.parametrize("name", ["cosine", "step", "constant"])
def test_warm_up_is_a_line_from_a_tenth_and_leaves_the_rest_alone(name: str):
    for step in range(100):
        line = 0.1 + 0.9 * step / 20 if step < 20 else 1
        bare = share_of_peak(name, step, 100, 0.0)
        assert share_of_peak(name, step, 100, 0.2) == pytest.approx(line * bare)


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(WinnowError, match="unknown schedule 'zigzag'") as caught:
        share_of_peak("zigzag", 0, 10, 0.1)
    assert all(name in str(caught.value) for name in get_args(Schedule))


def test_triangle_rises_from_a_fifth_and_falls_to_seven_hundredths():
    at = {step: share_of_peak("triangle", step, 1000, 0.2) for step in (0, 100, 200, 600, 1000)}
    assert at == pytest.approx({0: 0.2, 100: 0.6, 200: 1.0, 600: 0.535, 1000: 0.07})
