"""Tables of items, row by row, without images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.images.near_duplicates import Pairs
from stages.ingestion.items import NO_LABEL, NO_SPLIT, SPLIT_CODE, Items
from stages.ingestion.splits import FrozenSplits


@dataclass(frozen=True)
class Row:
    """One file; `pixels` is by default an image of its own, `source` the id with `.png`."""

    id: int
    label: str | None = "a"
    split: str | None = None
    group: int = 0
    pixels: int | None = None
    source: str | None = None


def items_of(rows: Sequence[Row]) -> Items:
    classes = sorted({row.label for row in rows if row.label is not None})
    index = {name: number for number, name in enumerate(classes)}
    count = len(rows)
    return Items(
        place=np.arange(count),
        sample_id=np.array([row.id for row in rows], np.uint64),
        pixel_key=np.array([row.id if row.pixels is None else row.pixels for row in rows], np.uint64),
        perceptual=np.zeros(count, np.uint64),
        flat=np.zeros(count, bool),
        label=np.array([NO_LABEL if row.label is None else index[row.label] for row in rows], np.int32),
        split=np.array([NO_SPLIT if row.split is None else SPLIT_CODE[row.split] for row in rows], np.int8),
        group=np.array([row.group for row in rows], np.uint64),
        weight=np.ones(count, np.float32),
        width=np.full(count, 4, np.int32),
        height=np.full(count, 4, np.int32),
        names=pa.chunked_array([pa.array([row.source or f"{row.id}.png" for row in rows], pa.string())]),
        classes=classes,
    )


def frozen_of(splits: dict[int, str]) -> FrozenSplits:
    ids = sorted(splits)
    return FrozenSplits(
        np.array(ids, np.uint64), np.array([SPLIT_CODE[splits[number]] for number in ids], np.int8)
    )


def pairs_of(*pairs: tuple[int, int], similarity: Sequence[float] | None = None) -> Pairs:
    """Pairs of indices; alike by .9 unless told."""
    both = np.array(pairs, np.int64).reshape(-1, 2)
    alike = np.full(len(both), 0.9) if similarity is None else np.array(similarity)
    return Pairs(both.min(axis=1), both.max(axis=1), alike.astype(np.float32))
