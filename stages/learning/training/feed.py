"""Batches on their way to the network: drawn, gathered, moved about, normalised, mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.learning.loading.batches import Batches
from stages.learning.loading.images import open_images
from stages.learning.loading.transforms import Moves, blend, draw_mixing, draw_moves, move
from stages.learning.machine.devices import to_device
from stages.learning.machine.parallel import world
from stages.learning.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """A batch on the device.

    Attributes
    ----------
    pixels : normalised, N×C×H×W; with several processes this one's rows of N
    index : int64, N; which samples of the training data they are
    partner : int64, N; which were mixed into them; None where nothing was mixed
    share : float32, N; of the sample itself; the rest is the partner's
    unlabeled : normalised, N×C×H×W, or this process's rows; images of the target domain beside them; None
        without
    """

    pixels: Tensor
    index: Tensor
    partner: Tensor | None = None
    share: Tensor | None = None
    unlabeled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def split(self, parts: int) -> list[Batch]:
        """So many batches of nearly the same size."""
        if parts == 1:
            return [self]
        fields = (self.pixels, self.index, self.partner, self.share, self.unlabeled)
        split = [(None,) * parts if each is None else each.tensor_split(parts) for each in fields]
        return [Batch(*part) for part in zip(*split, strict=True)]


class Feed:
    """Endless batches of the training data, and all that is random in them.

    The numbers are drawn on the host, by one generator, in this order: the indices of a batch, those of the
    unlabelled images beside it, the transforms of either, the mixing. The next batch's indices are drawn
    right after: what has to be fetched can then be fetched while the device computes. Several processes draw
    the same numbers for the whole batch, and each gathers its own rows.

    Parameters
    ----------
    labels : int64, N; for balanced sampling
    normalise : from uint8 N×H×W×C to pixels
    unlabeled : uint8, M×H×W×C; for `recipe.coral`
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        normalise: Callable[[Tensor], Tensor],
        unlabeled: NDArray[np.uint8] | None = None,
    ) -> None:
        self._recipe, self._device, self._normalise = recipe, device, normalise
        self._here = world()
        self._generator = torch.Generator().manual_seed(seed)
        self.size = min(recipe.batch_size, len(labels))
        held = [images]
        self._batches = [Batches(labels, self.size, recipe.sampling, self._generator)]
        if unlabeled is not None:
            held.append(unlabeled)
            nothing = np.zeros(len(unlabeled), np.int64)
            self._batches.append(Batches(nothing, self.size, "shuffle", self._generator))
        self._images = [open_images(each, device) for each in held]
        self._sides = [(each.shape[1], each.shape[2]) for each in held]
        self._draw()

    def next(self) -> Batch:
        """The batch of the next step."""
        index = to_device(self._ahead[0], self._device)
        moves = [draw_moves(self.size, sides, self._recipe, self._generator) for sides in self._sides]
        rows = self._here.rows(self.size)
        pixels, *beside = [self._pixels(which, moves[which], rows) for which in range(len(moves))]
        partner, share = None, None
        if self._recipe.mixup > 0 or self._recipe.cutmix > 0:
            mixing = draw_mixing(self.size, self._sides[0], self._recipe, self._generator)
            partner, share = to_device(mixing.partner, self._device), to_device(mixing.lam, self._device)
            if self._here.size == 1:
                partners = pixels[partner]  # unlike with `index_select`, they stay in channels-last memory
            else:
                partners = self._pixels(0, moves[0], mixing.partner[rows])
            pixels, partner = blend(pixels, partners, mixing[rows]), index[partner]
        self._draw()
        return Batch(pixels, index, partner, share, *beside)

    def preview(self) -> Tensor:
        """What a network will get for the next batch, but for transforms and mixing; nothing is drawn."""
        rows = self._here.rows(self.size)
        parts = [self._pixels(which, Moves(), rows) for which in range(len(self._images))]
        self._prefetch()
        return torch.cat(parts)

    def _pixels(self, which: int, moves: Moves, rows: slice | Tensor) -> Tensor:
        """Some rows of the training batch (0), or of the unlabelled one beside it (1)."""
        gathered = self._images[which].gather(self._ahead[which][rows])
        return self._normalise(move(gathered, moves[rows], self._recipe))

    def _draw(self) -> None:
        """Which images make the next batch, and which unlabelled ones go beside it; on the host."""
        self._ahead = [next(batches) for batches in self._batches]
        self._prefetch()

    def _prefetch(self) -> None:
        for images, drawn in zip(self._images, self._ahead, strict=True):
            images.prefetch(drawn[self._here.rows(self.size)])

    def state_dict(self) -> dict[str, Any]:
        """Generator, place in the shuffles, and what is drawn already."""
        return {
            "generator": self._generator.get_state(),
            "batches": [batches.state_dict() for batches in self._batches],
            "ahead": [index.clone() for index in self._ahead],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._generator.set_state(state["generator"])
        for batches, own in zip(self._batches, state["batches"], strict=True):
            batches.load_state_dict(own)
        self._ahead = state["ahead"]
        self._prefetch()
