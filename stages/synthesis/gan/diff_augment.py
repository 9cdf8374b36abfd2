"""Differentiable augmentation: what keeps the discriminator from learning its few images by heart.

No flips: they would turn digits and text into something else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.learning.machine.devices import to_device

_CHANCE = 0.5


def diff_augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Brightness, translation and cutout of N×C×H×W, differentiable, other for each image.

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
    """Six numbers for each image, float32 N×1 each: brightness, shifts, the hole's starts, the chance.

    They go to the device together, and what is spelt out of them is so there: one copy, nobody waits.
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
    """Indices along a side, moved by N×1 offsets; the edge is repeated. int64 N×side."""
    return (torch.arange(side, device=offsets.device) + offsets.long()).clamp(0, side - 1)


def _span(side: int, start: Tensor) -> Tensor:
    """A stretch of half of a side from N×1 starts on, which may lie half outside. bool N×side."""
    places = torch.arange(side, device=start.device)
    return (places >= start) & (places < start + side // 2)
