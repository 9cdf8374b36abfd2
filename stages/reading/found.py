"""What a scan finds, as columns: a million images are a hundred megabytes, not gigabytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.ids import SPLITS

NO_LABEL = -1
NO_SPLIT = -1
SPLIT_CODE = {name: code for code, name in enumerate(SPLITS)}


@dataclass(frozen=True)
class Found:
    """A row for every item that could be read, in the order of the source; N rows.

    Attributes
    ----------
    place : int64, ascending; the row of its square and its thumbnail in the scratch files
    sample_id : uint64 (`ids.hex_ids`); equal for equal encoded bytes
    pixel_key : uint64; equal exactly where the decoded pixels are equal
    perceptual : uint64; `perceptual.perceptual_hashes`
    flat : bool; too little contrast for the perceptual hash to mean anything
    label : int32, index into `classes`; `NO_LABEL` where there is none
    split : int8, index into `ids.SPLITS` as the source says it; `NO_SPLIT` where it does not
    group : uint64, a hash of the group's name; 0 for none
    weight : float32
    width, height : int32, native size in pixels, upright
    source : string; where it came from, for tables
    classes : class names in index order
    second : int32, index into `second_classes`, `NO_LABEL` where there is none; None where the source has
        no second column of labels
    second_classes : its class names, sorted
    """

    place: NDArray[np.int64]
    sample_id: NDArray[np.uint64]
    pixel_key: NDArray[np.uint64]
    perceptual: NDArray[np.uint64]
    flat: NDArray[np.bool_]
    label: NDArray[np.int32]
    split: NDArray[np.int8]
    group: NDArray[np.uint64]
    weight: NDArray[np.float32]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    source: pa.ChunkedArray
    classes: list[str]
    second: NDArray[np.int32] | None = None
    second_classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.place)
