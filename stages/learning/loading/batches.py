"""Which images make a batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def batches(
    labels: NDArray[np.int64], size: int, sampling: str, generator: torch.Generator
) -> Iterator[Tensor]:
    """Endless batches of indices: whole shuffles one after another, or classes drawn equally."""
    if sampling == "balanced":
        counts = np.bincount(labels)
        chances = torch.from_numpy(1.0 / counts[labels])
        while True:
            yield torch.multinomial(chances, size, replacement=True, generator=generator)
    pool = torch.empty(0, dtype=torch.int64)
    while True:
        while len(pool) < size:
            pool = torch.cat([pool, torch.randperm(len(labels), generator=generator)])
        yield pool[:size]
        pool = pool[size:]
