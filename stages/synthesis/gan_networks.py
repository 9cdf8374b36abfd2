"""Build the two networks of the GAN: a residual generator and a projection discriminator.

Both follow the plain recipe of R3GAN (Huang et al., arXiv 2501.05441, section 3): residual blocks
without normalisation layers, leaky ReLU, interpolation instead of strided convolutions, and the last
convolution of each block initialised to zero (fix-up). The class enters the discriminator as an inner
product (Miyato & Koyama, arXiv 1802.05637). R3GAN has millions of images to learn variety from; with
hundreds the generator stays at the mean image of a class, so the discriminator is also shown the
spread within small groups of one class (Karras et al., arXiv 1710.10196, section 3).

Differentiable augmentation keeps the discriminator from learning its few images by heart. It has no flips,
which would turn digits and text into something else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.learning.devices import to_device

_CHANCE = 0.5
MIN_SIZE, MAX_SIZE, SIZE_STEP, MAX_CHANNELS = 8, 64, 8, 4
_SMALLEST_MAP = 3  # pixels: below it a feature map holds no layout any more
_SLOPE = 0.2


def diff_augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Change brightness, translate and cut out N×C×H×W, differentiably and for each image anew.

    DiffAugment (Zhao et al., arXiv 2006.10738, section 3.2): brightness by up to a quarter of the
    scale, translation by up to an eighth of a side, a hole of a quarter of the area. Every image is
    transformed with a chance of a half only (as in Karras et al., arXiv 2006.06676, section 2.2):
    with so few steps the discriminator learns too slowly where all are.

    Parameters
    ----------
    images : on the scale from -1 to 1
    random : on the CPU, so that a seed means the same on every device
    """
    count, channels, height, width = images.shape
    brightness, rows, columns, tall, wide, chosen = _draw(count, height, width, random, images.device)
    moved = images + brightness.view(-1, 1, 1, 1)
    moved = moved.gather(2, _shifted(height, rows)[:, None, :, None].expand(-1, channels, -1, width))
    moved = moved.gather(3, _shifted(width, columns)[:, None, None, :].expand(-1, channels, height, -1))
    hole = _span(height, tall)[:, :, None] & _span(width, wide)[:, None, :]
    moved = moved.masked_fill(hole[:, None], 0.0)
    return torch.where(chosen.view(-1, 1, 1, 1) < _CHANCE, moved, images)


def _draw(
    count: int, height: int, width: int, random: torch.Generator, device: torch.device
) -> tuple[Tensor, ...]:
    """Draw six numbers for each image, float32 N×1 each: brightness, shifts, the hole's starts, the chance.

    They go to the device in one copy, for which nobody waits.
    """
    drawn = [torch.rand(count, 1, 1, 1, generator=random).view(-1, 1) - 0.5]
    for side in (height, width):
        most = max(1, side // 8)
        drawn.append(torch.randint(-most, most + 1, (count, 1), generator=random))
    for side in (height, width):
        drawn.append(torch.randint(-(side // 4), side - side // 4, (count, 1), generator=random))
    drawn.append(torch.rand(count, 1, 1, 1, generator=random).view(-1, 1))
    return to_device(torch.cat(drawn, 1), device).split(1, 1)


def _shifted(side: int, offsets: Tensor) -> Tensor:
    """Return indices along a side, moved by N×1 offsets; the edge is repeated. int64 N×side."""
    return (torch.arange(side, device=offsets.device) + offsets.long()).clamp(0, side - 1)


def _span(side: int, start: Tensor) -> Tensor:
    """Mark half of a side from N×1 starts on, which may lie half outside. bool N×side."""
    places = torch.arange(side, device=start.device)
    return (places >= start) & (places < start + side // 2)


def supports(image_shape: tuple[int, int, int]) -> bool:
    """Return whether the networks can make images of this height, width and channels."""
    height, width, channels = image_shape
    sides = all(MIN_SIZE <= side <= MAX_SIZE and side % SIZE_STEP == 0 for side in (height, width))
    return sides and 1 <= channels <= MAX_CHANNELS


class Generator(nn.Module):
    """Generate an image from a latent vector and a class.

    `forward` takes latents N×L (standard normal) and int64 labels N, and returns images N×C×H×W
    in (-1, 1).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        latent_dim: int,
        width: int,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self.layout = layout
        height, breadth, channels = image_shape
        widths = _widths(image_shape, width)[::-1]
        scale = 2 ** (len(widths) - 1)
        self.start = (widths[0], height // scale, breadth // scale)
        self.embed = nn.Embedding(classes, latent_dim)
        self.project = nn.Linear(2 * latent_dim, math.prod(self.start))
        self.blocks = nn.ModuleList(
            _Block(before, after) for before, after in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)
        _initialise(self)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return images N×C×H×W in (-1, 1)."""
        vector = self.project(torch.cat([latents, self.embed(labels)], 1))
        pixels = vector.view(-1, *self.start).contiguous(memory_format=self.layout)
        for index, block in enumerate(self.blocks):
            if index:
                pixels = functional.interpolate(pixels, scale_factor=2.0, mode="nearest")
            pixels = block(pixels)
        images: Tensor = torch.tanh(self.to_image(functional.leaky_relu(pixels, _SLOPE)))
        return images


class Discriminator(nn.Module):
    """Value images as a critic of their class.

    `forward` takes images N×C×H×W on the scale of the generator and int64 labels N, and returns N
    values; only differences between values mean anything (relativistic loss). Each `group` images
    one after another must be of one class, and either all real or all generated.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        width: int,
        group: int,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self.group, self.layout = group, layout
        height, breadth, channels = image_shape
        widths = _widths(image_shape, width)
        scale = 2 ** (len(widths) - 1)
        self.from_image = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            _Block(before, after) for before, after in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        places = (height // scale) * (breadth // scale)
        self.features = nn.Linear((widths[-1] + 1) * places, widths[-1])
        self.embed = nn.Embedding(classes, widths[-1])
        self.score = nn.Linear(widths[-1], 1, bias=False)
        _initialise(self)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return values, N."""
        pixels = self.from_image(images.contiguous(memory_format=self.layout))
        for index, block in enumerate(self.blocks):
            if index:
                pixels = functional.avg_pool2d(pixels, 2)
            pixels = block(pixels)
        pixels = torch.cat([functional.leaky_relu(pixels, _SLOPE), self._spread(pixels)], 1)
        features = self.features(pixels.flatten(1))
        projection = (features * self.embed(labels)).sum(1) / math.sqrt(features.shape[1])
        values: Tensor = projection + self.score(features).squeeze(1)
        return values

    def _spread(self, pixels: Tensor) -> Tensor:
        """Return the mean standard deviation within each group, as one more feature map N×1×H×W."""
        count, _, height, width = pixels.shape
        grouped = pixels.float().view(-1, self.group, *pixels.shape[1:])
        spread = (grouped.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        return (
            spread.to(pixels.dtype)
            .repeat_interleave(self.group)
            .view(count, 1, 1, 1)
            .expand(-1, 1, height, width)
        )


class _Block(nn.Module):
    """Two 3×3 convolutions around a shortcut; at first only the shortcut counts."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after else nn.Identity()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        inner = self.first(functional.leaky_relu(pixels, _SLOPE))
        outer: Tensor = self.shortcut(pixels) + self.second(functional.leaky_relu(inner, _SLOPE))
        return outer


def _initialise(network: nn.Module) -> None:
    """He initialisation where a leaky ReLU stands before, unit gain where none does.

    The last convolution of each block starts at zero, and the generator's images in the middle of
    tanh: with a larger gain it starts saturated, and some never come out of it.
    """
    gains = {
        "project": 1.0,
        "from_image": 1.0,
        "shortcut": 1.0,
        "score": 1.0,
        "second": 0.0,
        "to_image": 0.25,
    }
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = gains.get(name.rsplit(".", 1)[-1], nn.init.calculate_gain("leaky_relu", _SLOPE))
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=gain / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _widths(image_shape: tuple[int, int, int], width: int) -> list[int]:
    """Channels at each resolution, from the image's own down: doubled once or twice, then constant."""
    side, other = sorted(image_shape[:2])
    widths = [width]
    while len(widths) == 1 or (side > 4 and side % 2 == other % 2 == 0 and side // 2 >= _SMALLEST_MAP):
        side, other = side // 2, other // 2
        widths.append(width * min(2 ** len(widths), 4))
    return widths
