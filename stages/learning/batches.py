"""Bring batches to the network: draw their indices, gather, move, normalise and mix the images.

All images lie on the device where they fit; if not, the next batch is read while the device computes.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.learning.devices import free_memory, to_device
from stages.learning.names import Sampling
from stages.learning.parallel import world
from stages.learning.recipe import Recipe
from stages.learning.transforms import Mixing, Moves, blend, draw_mixing, draw_moves, move

_SHARE = 0.4  # of free memory that images may take: network, activations and validation need theirs

# Of normalised pixels that are made in one go on a GPU, and of its free memory, at most.
_GROUP_BYTES, _GROUP_SHARE = 2**28, 0.05


class Batches:
    """Draw endless batches of indices: whole shuffles one after another, or classes equally often.

    Parameters
    ----------
    labels : int64, N
    size : indices a batch
    generator : shared with whatever else is random in training; its state is not kept here
    """

    def __init__(
        self, labels: NDArray[np.int64], size: int, sampling: Sampling, generator: torch.Generator
    ) -> None:
        self._count, self._size, self._generator = len(labels), size, generator
        self._chances = (
            torch.from_numpy(1.0 / np.bincount(labels)[labels]) if sampling == "balanced" else None
        )
        self._pool = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Tensor:
        """Indices, int64."""
        if self._chances is not None:
            return torch.multinomial(self._chances, self._size, replacement=True, generator=self._generator)
        while len(self._pool) < self._size:
            shuffled = torch.randperm(self._count, generator=self._generator)
            self._pool = torch.cat([self._pool, shuffled])
        drawn, self._pool = self._pool[: self._size], self._pool[self._size :]
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Return what is left of the shuffle, as a view of it, which nobody changes."""
        return {"pool": self._pool}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._pool = state["pool"]


class Images(ABC):
    """Give access to N arrays of one shape and dtype by index.

    Attributes
    ----------
    resident : whether all are on the device
    """

    resident: bool

    def __init__(self, images: NDArray[Any], device: torch.device) -> None:
        self._count, self._device = len(images), device

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def gather(self, index: Tensor) -> Tensor:
        """Return the images at `index` (int64, B, on the host), B×…, on the device."""

    @abstractmethod
    def prefetch(self, index: Tensor) -> None:
        """Begin to read what `gather` will be asked for next; another call of `gather` discards it."""


def open_images(images: NDArray[Any], device: torch.device, *, resident: bool | None = None) -> Images:
    """Open `images` for training on `device`.

    Parameters
    ----------
    images : N×…, of any dtype that torch has; in memory or memory-mapped
    device : where batches are wanted
    resident : whether all are held there; None: where they take two fifths of its free memory at most. What
        lies in the memory of a CPU that is to compute stays as it is.
    """
    if resident is None:
        mapped = _is_mapped(images)
        resident = (device.type == "cpu" and not mapped) or images.nbytes <= _SHARE * free_memory(device)
    return _Resident(images, device) if resident else _Streamed(images, device)


def _is_mapped(images: NDArray[Any]) -> bool:
    """Whether an array is, or is a view of, a file."""
    part: object = images
    while isinstance(part, np.ndarray):
        if isinstance(part, np.memmap):
            return True
        part = part.base
    return False


class _Resident(Images):
    resident = True

    def __init__(self, images: NDArray[Any], device: torch.device) -> None:
        super().__init__(images, device)
        in_memory = np.array(images) if _is_mapped(images) else np.ascontiguousarray(images)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes here
            self._images = torch.from_numpy(in_memory).to(device)

    def gather(self, index: Tensor) -> Tensor:
        return self._images.index_select(0, to_device(index, self._device))

    def prefetch(self, index: Tensor) -> None:
        """Do nothing: all are on the device."""


class _Streamed(Images):
    """Read the next batch in a thread while the device computes with the last."""

    resident = False

    def __init__(self, images: NDArray[Any], device: torch.device) -> None:
        super().__init__(images, device)
        self._images = images
        # Pinned memory belongs to the device that is current, and each thread has a current one of its own.
        enter = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
        self._reader = ThreadPoolExecutor(1, "images", enter)  # its thread ends with it
        self._ahead: tuple[Tensor, Future[Tensor]] | None = None

    def gather(self, index: Tensor) -> Tensor:
        ahead, self._ahead = self._ahead, None
        expected = ahead is not None and torch.equal(ahead[0], index)
        batch = ahead[1].result() if ahead is not None and expected else self._read(index)
        return batch.to(self._device, non_blocking=batch.is_pinned())

    def prefetch(self, index: Tensor) -> None:
        self._ahead = (index, self._reader.submit(self._read, index))

    def _read(self, index: Tensor) -> Tensor:
        """A batch on the host, pinned for CUDA: only from there it is copied while the device computes."""
        batch = torch.from_numpy(self._images[index.numpy()])
        return batch.pin_memory() if self._device.type == "cuda" else batch


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
        """Split into so many batches of nearly the same size."""
        if parts == 1:
            return [self]
        fields = (self.pixels, self.index, self.partner, self.share, self.unlabeled)
        split = [(None,) * parts if each is None else each.tensor_split(parts) for each in fields]
        return [Batch(*part) for part in zip(*split, strict=True)]


@dataclass(frozen=True)
class _Draw:
    """The random numbers of one batch, on the host.

    Attributes
    ----------
    index : int64, N each; of the training images, and of the unlabelled ones beside them
    moves : of either
    mixing : None: nothing is mixed
    """

    index: list[Tensor]
    moves: list[Moves]
    mixing: Mixing | None


class Feed:
    """Make endless batches of the training data, and draw all that is random in them.

    The numbers are drawn on the host, by one generator, in this order: the indices of a batch, those of the
    unlabelled images beside it, the transforms of either, the mixing. Those of the next batch are drawn right
    after: what has to be fetched can then be fetched while the device computes. Where all images lie on a
    GPU a group of batches is made in one go, since a kernel there takes as long for a few images as for
    thousands; they are what they would be one by one. Several processes draw the same numbers for the whole
    batch, and each gathers its own rows.

    Parameters
    ----------
    labels : int64, N; for balanced sampling
    normalise : from uint8 N×H×W×C to pixels
    unlabeled : uint8, M×H×W×C; for `recipe.coral`
    group : batches made in one go; None: as many as pay on the device
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
        group: int | None = None,
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
        self._group = self._choose_group(held) if group is None else group
        self._flip_next = [self._first_flips(len(each)) for each in held]
        self._ready: list[Batch] = []
        self._draws: list[_Draw] = []
        self._used = 0
        self._begin()

    def next(self) -> Batch:
        """The batch of the next step."""
        if not self._ready:
            self._ready = self._make(self._draws)[::-1]
        batch = self._ready.pop()
        self._used += 1
        if not self._ready:
            self._begin()
        return batch

    def _choose_group(self, held: Sequence[NDArray[np.uint8]]) -> int:
        """Choose how many batches to make in one go: one, but for images that all lie on a GPU."""
        if self._device.type != "cuda" or not all(images.resident for images in self._images):
            return 1
        bytes_each = sum(4 * self.size * each[0].size for each in held)
        return max(1, min(_GROUP_BYTES, int(_GROUP_SHARE * free_memory(self._device))) // bytes_each)

    def _first_flips(self, count: int) -> Tensor | None:
        """Draw which images are flipped the first time, where each is flipped every other time."""
        if not (self._recipe.flip and self._recipe.alternate_flips):
            return None
        return torch.rand(count, generator=self._generator) < 0.5

    def _begin(self) -> None:
        """Draw the next group."""
        self._before = self._state()
        self._ready, self._used = [], 0
        self._draws = [self._draw() for _ in range(self._group)]
        self._prefetch()

    def _draw(self) -> _Draw:
        index = [next(batches) for batches in self._batches]
        moves = [
            draw_moves(self.size, sides, self._recipe, self._generator, self._flips(which, index[which]))
            for which, sides in enumerate(self._sides)
        ]
        mixing = None
        if self._recipe.mixup > 0 or self._recipe.cutmix > 0:
            mixing = draw_mixing(self.size, self._sides[0], self._recipe, self._generator)
        return _Draw(index, moves, mixing)

    def _flips(self, which: int, index: Tensor) -> Tensor | None:
        """Return which of these images are flipped this time, where that is not left to chance."""
        flip_next = self._flip_next[which]
        if flip_next is None:
            return None
        flipped = flip_next[index]
        flip_next[index] = ~flipped
        return flipped

    def _prefetch(self) -> None:
        rows = self._here.rows(self.size)
        for which, images in enumerate(self._images):
            images.prefetch(torch.cat([draw.index[which][rows] for draw in self._draws]))

    def _make(self, draws: Sequence[_Draw]) -> list[Batch]:
        """Make the batches of these draws."""
        index = to_device(torch.cat([draw.index[0] for draw in draws]), self._device).split(self.size)
        pixels = [self._pixels(which, draws) for which in range(len(self._images))]
        batches = []
        for number, draw in enumerate(draws):
            images, *unlabeled = (each[number] for each in pixels)
            partner = share = None
            if draw.mixing is not None:
                mixing = draw.mixing
                partner = index[number][to_device(mixing.partner, self._device)]
                share = to_device(mixing.lam, self._device)
                partners = self._partners(images, draw, mixing)
                images = blend(images, partners, mixing[self._here.rows(self.size)])
            batches.append(Batch(images, index[number], partner, share, *unlabeled))
        return batches

    def _pixels(self, which: int, draws: Sequence[_Draw]) -> Sequence[Tensor]:
        """Gather this process's rows of each training batch (0), or of the unlabelled ones (1)."""
        rows = self._here.rows(self.size)
        gathered = self._images[which].gather(torch.cat([draw.index[which][rows] for draw in draws]))
        moves = Moves.of_all([draw.moves[which][rows] for draw in draws])
        pixels = self._normalise(move(gathered, moves, self._recipe))
        return pixels.split(len(pixels) // len(draws))

    def _partners(self, pixels: Tensor, draw: _Draw, mixing: Mixing) -> Tensor:
        """Return the images that this process's rows are mixed with."""
        if self._here.size == 1:
            # Indexed, unlike `index_select`, they stay in channels-last memory.
            return pixels[to_device(mixing.partner, self._device)]
        rows = mixing.partner[self._here.rows(self.size)]
        gathered = self._images[0].gather(draw.index[0][rows])
        return self._normalise(move(gathered, draw.moves[0][rows], self._recipe))

    def _state(self) -> dict[str, Any]:
        """Return all that draws follow from."""
        return {
            "generator": self._generator.get_state(),
            "batches": [batches.state_dict() for batches in self._batches],
            "flip_next": [None if each is None else each.clone() for each in self._flip_next],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state before the current group was drawn, and how many of its batches are used up."""
        return {"before": self._before, "used": self._used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        before = state["before"]
        self._generator.set_state(before["generator"])
        for batches, part in zip(self._batches, before["batches"], strict=True):
            batches.load_state_dict(part)
        self._flip_next = [None if each is None else each.clone() for each in before["flip_next"]]
        self._begin()
        for _ in range(state["used"]):
            self.next()
