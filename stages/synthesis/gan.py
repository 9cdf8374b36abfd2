"""One class-conditional GAN over all classes, by a recipe for small data.

- relativistic pairing loss with zero-centred gradient penalties on real and generated images
  (R3GAN: Huang et al., arXiv 2501.05441, section 2), the penalties only every few steps
  (lazy regularisation: Karras et al., arXiv 1912.04958, section 3.1);
- the same random translation, cutout and brightness before the discriminator for real and generated
  images (DiffAugment: Zhao et al., arXiv 2006.10738), and no flips, which would turn digits and text
  into something else;
- a moving average of the generator's weights is what generates (Yazıcı et al., arXiv 1806.04498);
- classes are drawn by the square root of their counts, between as they come and all alike, in groups
  of one class, whose spread the discriminator sees (see `networks`);
- the discriminator learns twice as fast as the generator (two time-scales: Heusel et al.,
  arXiv 1706.08500).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from stages.errors import WinnowError
from stages.learning.loop import Device, choose_device
from stages.synthesis.networks import MAX_SIZE, MIN_SIZE, SIZE_STEP, Discriminator, Generator, supports

_GENERATE_BATCH = 256
_GROUP = 8  # images of one class that stand together in a batch
_DISCRIMINATOR_RATE = 2.0  # times the generator's learning rate
_AUGMENT_CHANCE = 0.5
_LOG_EVERY = 25  # steps between two rows of the history


@dataclass(frozen=True)
class GANConfig:
    """Size and training of the GAN.

    Attributes
    ----------
    steps : optimiser steps of each of the two networks
    batch_size : real images, and as many generated ones, a step; from 8 on in steps of 8 (rounded down)
    latent_dim : length of the latent vector
    width : channels at full resolution; up to four times as many at the coarsest
    learning_rate : of Adam, for the generator; held, then lowered over the second half
    gamma : factor of the gradient penalties
    penalty_every : steps between two penalties (each then counts so many times)
    ema : decay of the generator's moving average, reached after a warm-up
    """

    steps: int
    batch_size: int
    latent_dim: int
    width: int
    learning_rate: float
    gamma: float = 0.3
    penalty_every: int = 8
    ema: float = 0.995

    @property
    def group(self) -> int:
        """Images of one class that stand together in a batch."""
        return min(_GROUP, self.batch_size)


@dataclass
class TrainedGAN:
    """A trained generator, and how it came about.

    Attributes
    ----------
    generator : with the moving average of its weights, on the device it was trained on
    image_shape : height, width and channels
    classes : number of classes; labels are 0 to classes - 1
    history : a row every few steps: `step`, `generator_loss`, `discriminator_loss`, `penalty`
    """

    generator: Generator
    image_shape: tuple[int, int, int]
    classes: int
    latent_dim: int
    history: list[dict[str, float]] = field(default_factory=list)

    @torch.inference_mode()
    def generate(self, labels: NDArray[np.int64], *, seed: int) -> NDArray[np.uint8]:
        """Images uint8 N×H×W×C, one for each label; the same seed gives the same images."""
        device = next(self.generator.parameters()).device
        random = torch.Generator().manual_seed(seed)
        latents = torch.randn(len(labels), self.latent_dim, generator=random)
        batches = [np.zeros((0, *self.image_shape), np.uint8)]
        for start in range(0, len(labels), _GENERATE_BATCH):
            part = slice(start, start + _GENERATE_BATCH)
            wanted = torch.from_numpy(np.ascontiguousarray(labels[part])).to(device)
            pixels = self.generator(latents[part].to(device), wanted)
            scaled = ((pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255)
            batches.append(scaled.to(torch.uint8).cpu().numpy())
        return np.concatenate(batches)


def train_gan(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    config: GANConfig,
    *,
    seed: int,
    device: Device = "auto",
    description: str = "gan",
    on_row: Callable[[dict[str, float]], None] | None = None,
) -> TrainedGAN:
    """Train one GAN on all classes together.

    Parameters
    ----------
    images : uint8, N×H×W×C; 8 to 64 pixels a side in steps of 8, one or three channels
    labels : int64, N; 0 to K - 1, each with at least one image
    seed : of the weights, batches, latents and random transforms
    description : stands before the progress bar; empty for no bar
    on_row : called with each row of the history

    Raises
    ------
    WinnowError
        For images of a size that the networks do not have, or when the losses are no longer numbers.
    """
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    check_image_shape(shape)
    target = choose_device(device)
    classes = int(labels.max()) + 1
    generator, discriminator = _networks(shape, classes, config, seed, target)
    trainer = _Trainer(generator, discriminator, config, target)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    pixels, real_labels = pixels.to(target), torch.from_numpy(labels).to(target)
    random = torch.Generator().manual_seed(seed)
    batches = _batches(labels, config, random)
    result = TrainedGAN(trainer.average, shape, classes, config.latent_dim)
    progress = tqdm(range(1, config.steps + 1), desc=description, unit="step", disable=not description)
    for step in progress:
        index = next(batches).to(target)
        trainer.step(pixels[index], real_labels[index], random, step)
        if step % _LOG_EVERY == 0 or step == config.steps:
            row = {"step": float(step), **trainer.figures()}
            if not all(math.isfinite(value) for value in row.values()):
                raise WinnowError(
                    f"the GAN's losses are not numbers after step {step}: lower its learning_rate "
                    f"({config.learning_rate:g})"
                )
            result.history.append(row)
            progress.set_postfix({name: f"{value:.3f}" for name, value in row.items() if name != "step"})
            if on_row is not None:
                on_row(row)
    trainer.average.eval()
    return result


def check_image_shape(image_shape: tuple[int, int, int]) -> None:
    """Raise a WinnowError for images that the GAN cannot make."""
    if not supports(image_shape):
        height, width, channels = image_shape
        raise WinnowError(
            f"the GAN makes grey or RGB images of {MIN_SIZE} to {MAX_SIZE} pixels in steps of {SIZE_STEP}, "
            f"not {height}×{width} with {channels} channels: choose smote or random, or another image size"
        )


class _Trainer:
    """Both networks, their optimisers and the moving average."""

    def __init__(
        self, generator: Generator, discriminator: Discriminator, config: GANConfig, device: torch.device
    ) -> None:
        self.generator, self.discriminator, self.config, self.device = (
            generator,
            discriminator,
            config,
            device,
        )
        self.average = copy.deepcopy(generator).requires_grad_(False)
        self.rates = (config.learning_rate, config.learning_rate * _DISCRIMINATOR_RATE)
        self.optimisers = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.99), fused=True)
            for network, rate in zip((generator, discriminator), self.rates, strict=True)
        ]
        self.losses = {name: torch.zeros((), device=device) for name in _FIGURES}

    def step(self, real: Tensor, labels: Tensor, random: torch.Generator, number: int) -> None:
        """One update of the discriminator, then one of the generator, on the same generated images."""
        latents = torch.randn(len(labels), self.config.latent_dim, generator=random).to(self.device)
        with self._autocast():
            fake = self.generator(latents, labels).float()
        real_values = self._update_discriminator(real, fake.detach(), labels, random, number)
        self._update_generator(real_values, fake, labels, random, number)

    def figures(self) -> dict[str, float]:
        """The latest losses as plain numbers."""
        return {name: float(self.losses[name]) for name in _FIGURES}

    def _update_discriminator(
        self, real: Tensor, fake: Tensor, labels: Tensor, random: torch.Generator, number: int
    ) -> Tensor:
        """Value real above generated images; every few steps keep the slope at both near zero.

        Returns the values of the real images, N.
        """
        both = torch.cat([diff_augment(real, random), diff_augment(fake, random)])
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

    def _update_generator(
        self, real_values: Tensor, fake: Tensor, labels: Tensor, random: torch.Generator, number: int
    ) -> None:
        """Make generated images be valued above real ones of the same class.

        The values of the real images are those from before the discriminator's step: they only
        weigh the pairs, and valuing them again would cost another pass of the discriminator.
        """
        self.discriminator.requires_grad_(False)
        with self._autocast():
            fake_values = self.discriminator(diff_augment(fake, random), labels).float()
        loss = functional.softplus(real_values - fake_values).mean()
        self._descend(0, loss, number)
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

    def _autocast(self) -> torch.autocast:
        fast = self.device.type == "cuda" or (
            self.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        )
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast)


_FIGURES = ("generator_loss", "discriminator_loss", "penalty")


def _networks(
    shape: tuple[int, int, int], classes: int, config: GANConfig, seed: int, device: torch.device
) -> tuple[Generator, Discriminator]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks: tuple[Generator, Discriminator] = (
            Generator(shape, classes, config.latent_dim, config.width),
            Discriminator(shape, classes, config.width, config.group),
        )
    for network in networks:
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return networks


def _batches(labels: NDArray[np.int64], config: GANConfig, random: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices: groups of one class, classes by the square root of their counts."""
    members = [torch.from_numpy(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    chances = torch.tensor([float(len(rows)) for rows in members]).sqrt()
    groups = max(1, config.batch_size // config.group)
    while True:
        drawn = torch.multinomial(chances, groups, replacement=True, generator=random).tolist()
        yield torch.cat(
            [
                members[label][torch.randint(len(members[label]), (config.group,), generator=random)]
                for label in drawn
            ]
        )


def diff_augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Brightness, translation and cutout of N×C×H×W, differentiable, other for each image.

    DiffAugment (Zhao et al., arXiv 2006.10738, section 3.2): brightness by up to a quarter of the
    scale, translation by up to an eighth of a side, a hole of a quarter of the area. Every image is
    transformed with a chance of a half only (as in Karras et al., arXiv 2006.06676, section 2.2):
    with so few steps the discriminator learns too slowly where all are.
    """
    count, channels, height, width = images.shape
    device = images.device
    moved = images + (torch.rand(count, 1, 1, 1, generator=random) - 0.5).to(device)
    rows = _shifted(count, height, random).to(device)
    columns = _shifted(count, width, random).to(device)
    moved = moved.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    moved = moved.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
    hole = _span(count, height, random)[:, :, None] & _span(count, width, random)[:, None, :]
    moved = moved.masked_fill(hole[:, None].to(device), 0.0)
    chosen = torch.rand(count, 1, 1, 1, generator=random) < _AUGMENT_CHANCE
    return torch.where(chosen.to(device), moved, images)


def _shifted(count: int, side: int, random: torch.Generator) -> Tensor:
    """Indices along a side, moved by up to an eighth of it; the edge is repeated. N×side."""
    most = max(1, side // 8)
    offsets = torch.randint(-most, most + 1, (count, 1), generator=random)
    return (torch.arange(side) + offsets).clamp(0, side - 1)


def _span(count: int, side: int, random: torch.Generator) -> Tensor:
    """A stretch of half of a side, at a random place that may lie half outside. bool N×side."""
    start = torch.randint(-(side // 4), side - side // 4, (count, 1), generator=random)
    places = torch.arange(side)
    return (places >= start) & (places < start + side // 2)
