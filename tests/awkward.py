"""Payloads that worker processes meet in tests; importable there, since `tests` is on the path."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.errors import UnusableError

Item = bytes | NDArray[np.uint8] | UnusableError


@dataclass(frozen=True)
class Listed:
    """Gives the items that it was made of."""

    items: list[Item]

    def __len__(self) -> int:
        return len(self.items)

    def read(self) -> Iterator[Item]:
        """All items."""
        return iter(self.items)

    def part(self, start: int, stop: int) -> Listed:
        """Some of the items."""
        return dataclasses.replace(self, items=self.items[start:stop])


class Deadly:
    """An item whose decoding ends the process, as a segmentation fault would."""

    def __len__(self) -> int:  # noqa: PLE0303  (there is nobody left to return to)
        os._exit(139)


@dataclass(frozen=True)
class DiesReading(Listed):
    """Ends the process as it reads the item at one of these positions."""

    deadly: tuple[int, ...] = ()

    def read(self) -> Iterator[Item]:
        """Items up to the deadly one."""
        for index, item in enumerate(self.items):
            if index in self.deadly:
                os._exit(139)
            yield item

    def part(self, start: int, stop: int) -> DiesReading:
        """Some of the items."""
        deadly = tuple(index - start for index in self.deadly if start <= index < stop)
        return DiesReading(self.items[start:stop], deadly)


@dataclass(frozen=True)
class Prints(Listed):
    """Writes to standard output, as libraries do."""

    def read(self) -> Iterator[Item]:
        """All items, noisily."""
        print("x" * 10_000, flush=True)
        os.write(1, b"y" * 10_000)
        return iter(self.items)


@dataclass(frozen=True)
class Breaks(Listed):
    """Raises after its items, or just ends, before it has given as many as it promised."""

    promised: int = 0
    error: Exception | None = None

    def __len__(self) -> int:
        return self.promised

    def read(self) -> Iterator[Item]:
        """Some items."""
        yield from self.items
        if self.error is not None:
            raise self.error

    def part(self, start: int, stop: int) -> Breaks:
        """Some of the items; each part breaks where the whole would."""
        return Breaks(self.items[start:stop], stop - start, self.error if stop > len(self.items) else None)
