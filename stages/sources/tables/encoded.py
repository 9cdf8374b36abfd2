"""Encoded images that a table brings in its own cells; light, for worker processes to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.sources.base import Nothing, Payload, UnusableError


@dataclass(frozen=True)
class BytesPayload:
    """Encoded images, held.

    Attributes
    ----------
    items : for each its bytes, or why there are none, or None where it is the next one of `files`
    files : the others
    """

    items: list[bytes | UnusableError | None]
    files: Payload = field(default_factory=Nothing)

    def __len__(self) -> int:
        return len(self.items)

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Every item in order; see `base.Payload`."""
        files = self.files.read()
        for item in self.items:
            yield next(files) if item is None else item

    def part(self, start: int, stop: int) -> BytesPayload:
        """See `base.Payload`."""
        before, inside = self.items[:start].count(None), self.items[start:stop].count(None)
        return BytesPayload(self.items[start:stop], self.files.part(before, before + inside))
