"""Which images make a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.learning.names import Sampling


class Batches:
    """Endless batches of indices: whole shuffles one after another, or classes drawn equally.

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
        """What is left of the shuffle, as a view of it, which nobody changes."""
        return {"pool": self._pool}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._pool = state["pool"]
