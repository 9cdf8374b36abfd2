"""Change a whole batch on its device at random: shifts, flips, cut-outs, and mixtures.

Random numbers are drawn on the host, for the whole batch, and apart from the pixels: so the same seed gives
the same changes on every device, and several processes that share a batch each take their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.learning.devices import to_device
from stages.learning.recipe import Recipe


@dataclass(frozen=True)
class Moves:
    """How each image of a batch is changed; None: not at all. On the host.

    Attributes
    ----------
    offsets : int64, 2×N; rows and columns that the image is shifted by, up and to the left
    flipped : bool, N
    centres : int64, 2×N; row and column of the square that is blanked
    """

    offsets: Tensor | None = None
    flipped: Tensor | None = None
    centres: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Moves:
        """Select some images."""
        parts = (self.offsets, self.flipped, self.centres)
        return Moves(*(None if part is None else part[..., rows] for part in parts))

    @classmethod
    def of_all(cls, every: Sequence[Moves]) -> Moves:
        """Concatenate the moves of several batches."""
        parts = zip(*((moves.offsets, moves.flipped, moves.centres) for moves in every), strict=True)
        return cls(*(None if part[0] is None else torch.cat(part, -1) for part in parts))


def draw_moves(
    count: int,
    size: tuple[int, int],
    recipe: Recipe,
    generator: torch.Generator,
    flipped: Tensor | None = None,
) -> Moves:
    """Draw the random numbers for `move`.

    Parameters
    ----------
    count : images
    size : their height and width
    recipe : its `shift`, `flip` and `cutout`
    generator : on the host
    flipped : bool, `count`; which are flipped, where that is known and not to be drawn
    """
    offsets = centres = None
    if recipe.shift:
        offsets = torch.randint(-recipe.shift, recipe.shift + 1, (2, count), generator=generator)
    if recipe.flip and flipped is None:
        flipped = torch.rand(count, generator=generator) < 0.5
    if recipe.cutout:
        centres = torch.stack([torch.randint(side, (count,), generator=generator) for side in size])
    return Moves(offsets, flipped, centres)


def move(images: Tensor, moves: Moves, recipe: Recipe) -> Tensor:
    """Shift `images` (N×H×W×C, any dtype) with their edges repeated, flip them, and blank a square.

    The square has `recipe.cutout` pixels a side, is cut off at the image's edges, and takes the image's mean
    colour (DeVries & Taylor, arXiv 1708.04552, who take the mean of the set: near it, and not known here).
    """
    if moves.offsets is not None or moves.flipped is not None:
        images = _translated(images, moves)
    if moves.centres is not None:
        square = _box(images, to_device(moves.centres - recipe.cutout // 2, images.device), recipe.cutout)
        mean = images.float().mean((1, 2), keepdim=True)
        if not images.is_floating_point():
            mean = mean.round()
        images = torch.where(square[..., None], mean.to(images.dtype), images)
    return images


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift, flip and blank a whole batch on its device at random, N×H×W×C."""
    moves = draw_moves(len(images), (images.shape[1], images.shape[2]), recipe, generator)
    return move(images, moves, recipe)


def _translated(images: Tensor, moves: Moves) -> Tensor:
    """Shift and flip by one gather of rows and one within them: far faster than indexing each pixel."""
    count, height, width, channels = images.shape
    device = images.device
    columns = torch.arange(width, device=device).expand(count, width)
    if moves.flipped is not None:
        columns = torch.where(to_device(moves.flipped, device)[:, None], columns.flip(1), columns)
    if moves.offsets is not None:
        down, across = to_device(moves.offsets, device)[..., None]
        rows = (torch.arange(height, device=device) + down).clamp(0, height - 1)
        rows += height * torch.arange(count, device=device)[:, None]
        images = images.reshape(count * height, -1).index_select(0, rows.flatten())
        columns = (columns + across).clamp(0, width - 1)
    within = columns[:, :, None] * channels + torch.arange(channels, device=device)
    flat = images.reshape(count, height, width * channels)
    within = within.reshape(count, 1, -1).expand(-1, height, -1)
    return flat.gather(2, within).view(count, height, width, channels)


@dataclass(frozen=True)
class Mixing:
    """Which image of the batch each is mixed with, and how. On the host.

    Attributes
    ----------
    partner : int64, N; indices into the batch
    lam : float32, N; the share of the image itself, and so of its label, in the mixture
    corner, sides : int64, 2×N; of CutMix the upper left corner (row, column) of the box that is taken from
        the partner, which lies within the image, and its height and width; None: all pixels are blended
    """

    partner: Tensor
    lam: Tensor
    corner: Tensor | None = None
    sides: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Mixing:
        """Select some images; `partner` still counts in the whole batch."""
        boxes = (None if part is None else part[:, rows] for part in (self.corner, self.sides))
        return Mixing(self.partner[rows], self.lam[rows], *boxes)


def draw_mixing(count: int, size: tuple[int, int], recipe: Recipe, generator: torch.Generator) -> Mixing:
    """Draw the random numbers for `blend`.

    Parameters
    ----------
    count : images
    size : their height and width
    recipe : its `mixup` and `cutmix`, not both 0; with both, a coin decides for the whole batch
    generator : on the host
    """
    partner = torch.randperm(count, generator=generator)
    cut = recipe.cutmix > 0
    if cut and recipe.mixup > 0:
        cut = bool(torch.rand((), generator=generator) < 0.5)
    alpha = recipe.cutmix if cut else recipe.mixup
    # torch draws no Beta from a generator of one's own.
    seed = int(torch.randint(2**62, (), generator=generator))
    lam = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count))
    if not cut:
        return Mixing(partner, lam.float())
    whole = torch.tensor(size)[:, None]
    centres = torch.stack([torch.randint(side, (count,), generator=generator) for side in size])
    half = (whole * (1 - lam).sqrt()).long() // 2
    corner, end = (centres - half).clamp(min=0), torch.minimum(centres + half, whole)
    sides = end - corner
    # The share of pixels that were really taken: boxes are cut off at the edges.
    lam = 1 - sides.prod(0) / (size[0] * size[1])
    return Mixing(partner, lam.float(), corner, sides)


def blend(pixels: Tensor, partners: Tensor, mixing: Mixing) -> Tensor:
    """Mix `pixels` and `partners`, float N×C×H×W (for mixup any N×…), of the same shape.

    mixup (Zhang et al., arXiv 1710.09412) adds the two in the shares lam and 1 - lam; CutMix (Yun et al.,
    arXiv 1905.04899) takes a box with a share of 1 - lam of the pixels from the partner.
    """
    if mixing.corner is None or mixing.sides is None:
        lam = to_device(mixing.lam, pixels.device).view(-1, *[1] * (pixels.ndim - 1))
        return torch.lerp(partners, pixels, lam.to(pixels.dtype))
    corner, sides = to_device(mixing.corner, pixels.device), to_device(mixing.sides, pixels.device)
    box = _box(pixels.permute(0, 2, 3, 1), corner, sides)
    return torch.where(box[:, None], partners, pixels)


def _box(images: Tensor, corner: Tensor, sides: Tensor | int) -> Tensor:
    """Mark the pixels of `images` (N×H×W×C) that lie in a box each; bool, N×H×W."""
    inside = []
    for axis, length in enumerate(images.shape[1:3]):
        start = corner[axis, :, None]
        side = sides if isinstance(sides, int) else sides[axis, :, None]
        place = torch.arange(length, device=images.device)
        inside.append((place >= start) & (place < start + side))
    return inside[0][:, :, None] & inside[1][:, None, :]
