import copy

import pytest
import torch
from torch import nn

from stages.learning.optimisers import Lookahead, MovingAverage


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
