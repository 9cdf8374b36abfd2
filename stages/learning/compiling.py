"""Whether compilation pays: a few forward and backward passes say so before training begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from stages.learning.names import Compile

_WARM_UP, _TIMED = 2, 5  # steps
_LEAST_STEPS = 20 * (_WARM_UP + _TIMED)  # of training: a probe takes a twentieth of it at most
_RISK = 0.1  # share of training that an attempt may take, which is lost where it does not pay
_LEAST_GAIN = 0.03  # share of a step under which a difference may be chance

Compiler = Callable[..., Any]


def choose_network(
    network: nn.Module,
    pixels: Tensor,
    *,
    steps: int,
    device: torch.device,
    mode: Compile,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    compiler: Compiler = torch.compile,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[nn.Module, str]:
    """`network` as it trains fastest: as it is, in contiguous memory, compiled, or compiled into CUDA graphs.

    Nothing is left of the probe: weights, batch statistics, gradients and random numbers are as before. The
    compiled network shares its parameters with `network`. Each kind of compilation is tried only where its
    usual time is a tenth of training's at most, since where it does not pay it is lost; and whatever fails
    in it (no compiler, an operation that it does not know) leaves the network as it is.

    Parameters
    ----------
    network : on the device, in training mode; from pixels to a tensor, or a tuple of tensors and None
    pixels : of one batch, as the network will get them; float, N×C×H×W in channels-last memory
    steps : that training will take
    mode : `auto` probes on CUDA alone, `probe` everywhere, `off` nowhere
    context : to compute in, such as that of `devices.Autocast`
    compiler : with the signature of torch.compile
    clock : seconds

    Returns
    -------
    network : which to call in its place; in several processes, which must do the same, always as it is
    note : a sentence for the user where something was chosen or failed, without figures; else empty
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda") or steps < _LEAST_STEPS:
        return network, ""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return network, ""

    def seconds(candidate: nn.Module) -> float:
        return _seconds(candidate, pixels, device, context, clock)

    best, note, trying = network, "", ""
    try:
        with _undone(network, device):
            least = seconds(network)
            if pixels.ndim == 4:
                contiguous = _Contiguous(network)
                if (found := seconds(contiguous)) < (1 - _LEAST_GAIN) * least:
                    best, least, note = contiguous, found, "in contiguous memory"
                else:
                    network.to(memory_format=torch.channels_last)
            base = best
            for trying, usual, options in _ways(device):
                if usual > _RISK * steps * least:
                    break
                candidate = compiler(base, dynamic=False, **options)  # all batches are of one size
                if (found := seconds(candidate)) < (1 - _LEAST_GAIN) * least:
                    best, least, note = candidate, found, trying
    except Exception as error:  # compilers fail in many ways, and training can do without
        with suppress(Exception):
            torch.compiler.reset()
        # Where the network itself fails, training will say so, or take smaller batches.
        return best, f"not {trying}: {_reason(error)}" if trying else ""
    return best, f"{note}, which is faster here" if note else ""


def _ways(device: torch.device) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """What to try, the seconds that it usually takes, and the arguments of torch.compile."""
    if device.type == "cuda":
        # Small networks wait for the launches of their kernels, and a graph is one launch.
        yield "recorded as CUDA graphs", 5.0, {"backend": "cudagraphs"}
    yield "compiled", 30.0, {}
    if device.type == "cuda":
        yield "compiled, as CUDA graphs", 30.0, {"mode": "reduce-overhead"}


class _Contiguous(nn.Module):
    """A network whose weights and pixels lie channel by channel; from then on, its own weights do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)

    def forward(self, pixels: Tensor) -> Any:
        return self.network(pixels.contiguous())


def _seconds(
    network: nn.Module,
    pixels: Tensor,
    device: torch.device,
    context: Callable[[], AbstractContextManager[object]],
    clock: Callable[[], float],
) -> float:
    """The shortest forward and backward pass of a few, the first ones not counted."""
    taken = []
    for step in range(_WARM_UP + _TIMED):
        _wait(device)
        start = clock()
        with context():
            outputs = [tensor for tensor in _tensors(network(pixels)) if tensor.requires_grad]
            loss = torch.stack([tensor.float().square().mean() for tensor in outputs]).sum()
        loss.backward()
        network.zero_grad(set_to_none=True)
        _wait(device)
        if step >= _WARM_UP:
            taken.append(clock() - start)
    return min(taken)


def _tensors(outputs: Any) -> list[Tensor]:
    """The tensors of a network's outputs."""
    if isinstance(outputs, tuple):
        return [tensor for each in outputs for tensor in _tensors(each)]
    return [outputs] if isinstance(outputs, Tensor) else []


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def _undone(network: nn.Module, device: torch.device) -> Iterator[None]:
    """What is done to a network's state, and to random numbers, is gone afterwards."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [parameter.grad for parameter in network.parameters()]
    # Not to be cleared by `zero_grad`, nor added to.
    for parameter in network.parameters():
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        network.load_state_dict(state)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient


def _reason(error: Exception) -> str:
    """The first line of what a compiler says, which may be pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
