"""Take the GAN's training steps, and hold its state and progress as arrays that go to disk and come back."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stages.errors import WinnowError
from stages.learning.devices import computes_in_bf16, to_device
from stages.learning.names import Device
from stages.learning.resume import code_files, inputs_digest
from stages.synthesis.gan_networks import Discriminator, Generator, diff_augment

_GROUP = 8  # images of one class that stand together in a batch
_DISCRIMINATOR_RATE = 2.0  # times the generator's learning rate

# Channels from which on the rate falls as 1/width, as Adam's does for hidden weights in µP (Yang et al.,
# arXiv 2203.03466, table 3): at the rate that suits 16 channels, 32 collapse.
_BASE_WIDTH = 16

_FIGURES = ("generator_loss", "discriminator_loss", "penalty")
Weights = list[NDArray[np.float32]]

# In stages/; tests/synthesis/test_gan_trainer.py holds it against what training.py imports.
CODE = ("dataset", "learning", "synthesis")

_LIBRARIES = ("numpy", "torch")


@dataclass(frozen=True)
class GANConfig:
    """Size and training of the GAN.

    Attributes
    ----------
    steps : optimiser steps of each of the two networks
    batch_size : real images, and as many generated ones, a step; from 8 on in steps of 8 (rounded down)
    latent_dim : length of the latent vector
    width : channels at full resolution; up to four times as many at the coarsest
    learning_rate : of Adam, for the generator, up to 16 channels of `width`; over that it is lowered in
        proportion. Held, then lowered over the second half
    snapshots : states of the generator among which validation chooses, class by class
    gamma : factor of the gradient penalties
    penalty_every : steps between two penalties (each then counts so many times)
    ema : decay of the generator's moving average, reached after a warm-up
    """

    steps: int
    batch_size: int
    latent_dim: int
    width: int
    learning_rate: float
    snapshots: int = 4
    gamma: float = 0.3
    penalty_every: int = 8
    ema: float = 0.995

    @property
    def group(self) -> int:
        """Return the number of images of one class that stand together in a batch."""
        return min(_GROUP, self.batch_size)


class GANConfigError(WinnowError):
    """A training that failed and that another value may put right.

    The message begins with the name of that value in `GANConfig`, so that a caller can say where it stands.
    """


class GANTrainer:
    """Train both networks, with their optimisers, the moving average and the random numbers.

    Parameters
    ----------
    shape : height, width and channels
    counts : int64, K; real images of each class
    seed : of weights, batches, latents and random transforms
    fast : bf16 where the hardware computes in it, and channels last; without, plain float32 and
        channels first, for comparison
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        counts: NDArray[np.int64],
        config: GANConfig,
        seed: int,
        device: torch.device,
        *,
        fast: bool = True,
    ) -> None:
        self.config, self.device = config, device
        self.layout = torch.channels_last if fast else torch.contiguous_format
        self.bf16 = fast and computes_in_bf16(device)
        self.generator, self.discriminator = self._networks(shape, len(counts), seed)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        rate = config.learning_rate * min(1.0, _BASE_WIDTH / config.width)
        self.rates = (rate, rate * _DISCRIMINATOR_RATE)
        self.optimisers = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.99), fused=True)
            for network, rate in zip((self.generator, self.discriminator), self.rates, strict=True)
        ]
        self.random = torch.Generator().manual_seed(seed)
        self.losses = {name: torch.zeros((), device=device) for name in _FIGURES}
        self.chances = torch.from_numpy(counts).double().sqrt()
        self.batch_size = max(config.group, config.batch_size // config.group * config.group)
        self.steps = 0

    def draw(self, members: list[Tensor]) -> Tensor:
        """Draw the indices of a batch: groups of one class, classes by the square root of their counts.

        `members` holds the indices of each class.
        """
        group = self.config.group
        drawn = torch.multinomial(
            self.chances, self.batch_size // group, replacement=True, generator=self.random
        )
        return torch.cat(
            [
                members[label][torch.randint(len(members[label]), (group,), generator=self.random)]
                for label in drawn.tolist()
            ]
        )

    def step(self, real: Tensor, labels: Tensor) -> None:
        """Update the discriminator, then the generator, on the same generated images.

        `real` holds N×C×H×W on the scale from -1 to 1, `labels` int64 N, in groups of one class.
        """
        number = self.steps + 1
        latents = torch.randn(len(labels), self.config.latent_dim, generator=self.random)
        latents = to_device(latents, self.device)
        with self._autocast():
            fake = self.generator(latents, labels).float()
        real_values = self._update_discriminator(real, fake.detach(), labels, number)
        self._update_generator(real_values, fake, labels, number)
        self.steps = number

    def halve_batch(self) -> bool:
        """Halve the batch from now on; False where it is a single group already."""
        group = self.config.group
        if self.batch_size <= group:
            return False
        self.batch_size = max(group, self.batch_size // 2 // group * group)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def figures(self) -> dict[str, float]:
        """Return the latest losses as plain numbers."""
        return {name: float(self.losses[name]) for name in _FIGURES}

    def is_finite(self) -> bool:
        """Return whether losses and weights are still numbers; it waits for the device."""
        weights = [*self.generator.parameters(), *self.discriminator.parameters()]
        norms = torch.stack(torch._foreach_norm([weight.detach() for weight in weights]))
        return bool(torch.cat([norms, torch.stack(list(self.losses.values()))]).isfinite().all())

    def averaged(self) -> list[NDArray[np.float32]]:
        """Copy the moving average's weights."""
        return [_array(weight) for weight in self.average.parameters()]

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that the next step follows from, but for data and configuration."""
        numbers = np.array([self.steps, self.batch_size], np.int64)
        state: dict[str, NDArray[Any]] = {"numbers": numbers, "random": self.random.get_state().numpy()}
        state |= {f"loss.{name}": _array(loss) for name, loss in self.losses.items()}
        for place, network in enumerate(self._all_networks()):
            for index, weight in enumerate(network.parameters()):
                state[f"network.{place}.{index}"] = _array(weight)
        for place, optimiser in enumerate(self.optimisers):
            for index, weight in enumerate(optimiser.param_groups[0]["params"]):
                for name, value in optimiser.state[weight].items():
                    state[f"optimiser.{place}.{index}.{name}"] = _array(value)
        return state

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave."""
        self.steps, self.batch_size = (int(number) for number in state["numbers"])
        self.random.set_state(torch.from_numpy(state["random"]))
        for name, loss in self.losses.items():
            loss.copy_(torch.from_numpy(state[f"loss.{name}"]))
        with torch.no_grad():
            for place, network in enumerate(self._all_networks()):
                for index, weight in enumerate(network.parameters()):
                    weight.copy_(torch.from_numpy(state[f"network.{place}.{index}"]))
        for place, optimiser in enumerate(self.optimisers):
            for index, weight in enumerate(optimiser.param_groups[0]["params"]):
                start = f"optimiser.{place}.{index}."
                for key in (key for key in state if key.startswith(start)):
                    value = torch.from_numpy(state[key])
                    # In the layout of the weight: the fused update goes through memory side by side.
                    copied = torch.empty_like(weight if value.ndim else value, device=weight.device)
                    optimiser.state[weight][key.removeprefix(start)] = copied.detach().copy_(value)

    def _update_discriminator(self, real: Tensor, fake: Tensor, labels: Tensor, number: int) -> Tensor:
        """Value real above generated images; every few steps keep the slope at both near zero.

        Returns the values of the real images, N.
        """
        both = torch.cat([diff_augment(real, self.random), diff_augment(fake, self.random)])
        penalised = number % self.config.penalty_every == 0
        both.requires_grad_(penalised)
        with self._autocast():
            values = self.discriminator(both, labels.repeat(2)).float()
        real_values, fake_values = values.chunk(2)
        loss = functional.softplus(fake_values - real_values).mean()
        total = loss
        if penalised:
            (slope,) = torch.autograd.grad(values.sum(), both, create_graph=True)
            # The sum of R1 and R2: the mean over both halves is half of it.
            penalty = slope.float().square().sum((1, 2, 3)).mean() * 2
            total = loss + self.config.gamma / 2 * self.config.penalty_every * penalty
            self.losses["penalty"] = penalty.detach()
        self._descend(1, total, number)
        self.losses["discriminator_loss"] = loss.detach()
        return real_values.detach()

    def _update_generator(self, real_values: Tensor, fake: Tensor, labels: Tensor, number: int) -> None:
        """Make generated images be valued above real ones of the same class.

        The values of the real images are those from before the discriminator's step: they only
        weigh the pairs, and valuing them again would cost another pass of the discriminator.
        """
        self.discriminator.requires_grad_(False)
        try:
            with self._autocast():
                fake_values = self.discriminator(diff_augment(fake, self.random), labels).float()
            loss = functional.softplus(real_values - fake_values).mean()
            self._descend(0, loss, number)
        finally:
            self.discriminator.requires_grad_(True)
        self.losses["generator_loss"] = loss.detach()
        decay = min(self.config.ema, number / (number + 10))
        with torch.no_grad():
            averaged: list[Tensor] = list(self.average.parameters())
            current: list[Tensor] = list(self.generator.parameters())
            torch._foreach_lerp_(averaged, current, 1 - decay)

    def _descend(self, which: int, loss: Tensor, number: int) -> None:
        optimiser = self.optimisers[which]
        steps = self.config.steps
        factor = 1.0 if 2 * number <= steps else max(0.05, 2 * (steps - number) / steps)
        for group in optimiser.param_groups:
            group["lr"] = self.rates[which] * factor
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def _networks(
        self, shape: tuple[int, int, int], classes: int, seed: int
    ) -> tuple[Generator, Discriminator]:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(shape, classes, config.latent_dim, config.width, self.layout)
            discriminator = Discriminator(shape, classes, config.width, config.group, self.layout)
        for network in (generator, discriminator):
            network.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        return generator, discriminator

    def _all_networks(self) -> tuple[torch.nn.Module, ...]:
        return self.generator, self.discriminator, self.average

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def _array(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor to the CPU, rows first."""
    array: NDArray[Any] = tensor.detach().cpu().numpy().copy(order="C")
    return array


@dataclass
class GANProgress:
    """The figures, snapshots and samples of a training so far.

    Attributes
    ----------
    history : a row every few steps: `step`, `generator_loss`, `discriminator_loss`, `penalty`
    notes : a sentence each for what did not go as ordered
    snapshots : step and averaged weights of each
    good : step and averaged weights of the last time that all was found to be numbers
    samples : step and uint8 K×n×H×W×C of each
    """

    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    snapshots: dict[int, Weights] = field(default_factory=dict)
    good: tuple[int, Weights] | None = None
    samples: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all of it as arrays; text as JSON in bytes."""
        text = json.dumps({"history": self.history, "notes": self.notes}).encode()
        state: dict[str, NDArray[Any]] = {"text": np.frombuffer(text, np.uint8)}
        state |= {f"sample.{step}": images for step, images in self.samples.items()}
        weights_of = {"good": dict([self.good] if self.good else []), "snapshot": self.snapshots}
        for name, states in weights_of.items():
            for step, weights in states.items():
                state |= {f"{name}.{step}.{index}": weight for index, weight in enumerate(weights)}
        return state

    @classmethod
    def load(cls, state: Mapping[str, NDArray[Any]]) -> GANProgress:
        """Read what `state` returned."""
        text = json.loads(state["text"].tobytes())
        record = cls(text["history"], text["notes"])
        good: dict[int, Weights] = {}
        for key, array in state.items():
            kind, *numbers = key.split(".")
            if kind == "sample":
                record.samples[int(numbers[0])] = array
            elif kind in ("good", "snapshot"):
                states = good if kind == "good" else record.snapshots
                states.setdefault(int(numbers[0]), []).append(array)
        record.good = next(iter(good.items()), None)
        return record


def gan_key(
    images: NDArray[np.uint8], labels: NDArray[np.int64], config: GANConfig, *, seed: int, device: Device
) -> str:
    """Digest images, labels, configuration, seed, code, libraries and arithmetic: the key of checkpoints."""
    return inputs_digest(
        (images, labels),
        code_files(CODE),
        [asdict(config), seed],
        device=device,
        libraries=_LIBRARIES,
    )
