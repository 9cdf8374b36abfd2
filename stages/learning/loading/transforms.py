"""Random changes of a whole batch on its device."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.learning.recipe import Recipe


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random translation and flip of a whole batch on its device, uint8 N×H×W×C."""
    count, height, width, _ = images.shape
    if recipe.shift:
        offsets = torch.randint(-recipe.shift, recipe.shift + 1, (2, count, 1), generator=generator)
        offsets = offsets.to(images.device)
        rows = (torch.arange(height, device=images.device) + offsets[0]).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) + offsets[1]).clamp(0, width - 1)
        which = torch.arange(count, device=images.device)[:, None, None]
        images = images[which, rows[:, :, None], columns[:, None, :]]
    if recipe.flip:
        flipped = torch.rand(count, generator=generator).to(images.device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(2), images)
    return images
