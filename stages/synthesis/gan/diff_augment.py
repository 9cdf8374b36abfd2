"""Differentiable augmentation: what keeps the discriminator from learning its few images by heart.

No flips: they would turn digits and text into something else.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    device = images.device
    moved = images + (torch.rand(count, 1, 1, 1, generator=random) - 0.5).to(device)
    rows = _shifted(count, height, random).to(device)
    columns = _shifted(count, width, random).to(device)
    moved = moved.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    moved = moved.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
    hole = _span(count, height, random)[:, :, None] & _span(count, width, random)[:, None, :]
    moved = moved.masked_fill(hole[:, None].to(device), 0.0)
    chosen = torch.rand(count, 1, 1, 1, generator=random) < _CHANCE
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
