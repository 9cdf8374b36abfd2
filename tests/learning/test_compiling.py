import shutil
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.learning.compiling import choose_network

CPU = torch.device("cpu")
LONG = 1_000_000  # steps: for these any compilation may be tried


class Network(nn.Module):
    """With batch statistics, and random numbers of its own; `seconds` long by the clock that it moves on."""

    def __init__(self, clock: "Clock", seconds: float = 1.0) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 36, 2)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, None]:
        self.clock.now += self.seconds
        features = self.layers(pixels)
        return features, self.head(features), None


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Compiled(nn.Module):
    """As long as `share` of what it is made of."""

    def __init__(self, network: nn.Module, clock: Clock, saved: float) -> None:
        super().__init__()
        self.network, self.clock, self.saved = network, clock, saved

    def forward(self, pixels: Tensor) -> Any:
        outputs = self.network(pixels)
        self.clock.now -= self.saved
        return outputs


class Compiler:
    """Makes networks faster by `saved` seconds a call."""

    def __init__(self, clock: Clock, saved: float = 0.0, error: Exception | None = None) -> None:
        self.clock, self.saved, self.error = clock, saved, error
        self.calls: list[dict[str, Any]] = []

    def __call__(self, network: nn.Module, **options: Any) -> nn.Module:
        self.calls.append(options)
        if self.error is not None:
            raise self.error
        return Compiled(network, self.clock, self.saved)


def pixels() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def choose(network: Network, compiler: Compiler, **choices: Any) -> tuple[nn.Module, str]:
    how = {"steps": LONG, "device": CPU, "mode": "probe", "compiler": compiler, "clock": network.clock}
    return choose_network(network, pixels(), **(how | choices))


def test_what_is_faster_is_taken_and_shares_the_weights():
    clock = Clock()
    network, compiler = Network(clock), Compiler(clock, saved=0.4)
    chosen, note = choose(network, compiler)
    assert isinstance(chosen, Compiled)
    assert {id(p) for p in chosen.parameters()} == {id(p) for p in network.parameters()}
    assert note == "compiled, which is faster here"
    assert compiler.calls == [{"dynamic": False}]


@pytest.mark.parametrize("saved", [0.0, -0.5, 0.02])
def test_what_is_slower_or_hardly_faster_is_not_taken(saved: float):
    clock = Clock()
    network, compiler = Network(clock), Compiler(clock, saved)
    assert choose(network, compiler) == (network, "")
    assert len(compiler.calls) == 1


def test_a_compiler_that_fails_leaves_the_network_and_says_why():
    clock = Clock()
    network = Network(clock)
    chosen, note = choose(network, Compiler(clock, error=RuntimeError("no C++ compiler\nfound\nanywhere")))
    assert chosen is network
    assert note == "not compiled: no C++ compiler"


def test_a_network_that_fails_is_left_for_training_to_complain_about():
    clock = Clock()
    network, compiler = Network(clock), Compiler(clock)
    wrong = torch.rand(6, 1, 8, 8)
    how = {"steps": LONG, "device": CPU, "mode": "probe", "compiler": compiler, "clock": clock}
    assert choose_network(network, wrong, **how) == (network, "")
    assert not compiler.calls


@pytest.mark.parametrize("saved", [0.4, -0.4])
@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_nothing_is_left_of_the_probe(saved: float, error: Exception | None):
    clock = Clock()
    network = Network(clock)
    head = network.head.weight
    head.grad = torch.ones_like(head)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    choose(network, Compiler(clock, saved, error))
    assert torch.equal(torch.rand(3), expected)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert network.head.weight is head
    assert torch.equal(head.grad, torch.ones_like(head))
    assert all(p.grad is None for name, p in network.named_parameters() if name != "head.weight")
    assert network.training


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_on_a_cpu_nothing_is_probed_unless_it_is_asked_for(mode: str):
    clock = Clock()
    network, compiler = Network(clock), Compiler(clock, saved=0.4)
    assert choose(network, compiler, mode=mode) == (network, "")
    assert clock.now == 0


def test_short_trainings_are_not_probed_and_those_that_cannot_pay_not_compiled():
    clock = Clock()
    network, compiler = Network(clock), Compiler(clock, saved=0.4)
    assert choose(network, compiler, steps=100) == (network, "")
    assert clock.now == 0
    network.seconds = 0.01
    assert choose(network, compiler, steps=20_000) == (network, "")  # 200 seconds, and it takes 30
    assert clock.now > 0
    assert not compiler.calls
    network.seconds = 1
    assert choose(network, compiler, steps=400)[0] is not network
    assert compiler.calls


def test_the_faster_memory_format_is_taken():
    class Slow(Network):
        """In channels-last memory."""

        def forward(self, pixels: Tensor) -> Any:
            self.seconds = 0.5 if pixels.is_contiguous() else 1.0
            return super().forward(pixels)

    clock = Clock()
    network = Slow(clock).to(memory_format=torch.channels_last)
    last = pixels().contiguous(memory_format=torch.channels_last)
    how = {"steps": 200, "device": CPU, "mode": "probe", "clock": clock, "compiler": Compiler(clock)}
    chosen, note = choose_network(network, last, **how)
    assert note == "in contiguous memory, which is faster here"
    assert network.layers[0].weight.is_contiguous()
    torch.testing.assert_close(chosen.eval()(last)[1], network.eval()(last)[1])
    fast = Network(clock).to(memory_format=torch.channels_last)
    assert choose_network(fast, last, **how) == (fast, "")
    assert fast.layers[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_steps_compute_in_the_context_that_training_has():
    seen = []

    class Seeing(Network):
        def forward(self, pixels: Tensor) -> Any:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(pixels)

    def context() -> AbstractContextManager[object]:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    clock = Clock()
    choose(Seeing(clock), Compiler(clock), context=context)
    assert seen
    assert all(seen)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_torch_s_own_compiler_gives_what_the_network_gives():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    times = iter(range(10**9))

    def clock() -> float:
        """Each step takes less than the one before: whatever comes last wins."""
        return 1e9 * (1 - 0.9 ** next(times))

    chosen, note = choose_network(network, pixels(), steps=LONG, device=CPU, mode="probe", clock=clock)
    assert note == "compiled, which is faster here"
    assert chosen is not network
    torch.testing.assert_close(chosen(pixels()), network(pixels()))
