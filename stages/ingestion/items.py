"""The table of items that ingestion fills step by step, as columns: a million rows take some 100 MB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS

NO_LABEL = -1
NO_SPLIT = -1
SPLIT_CODE = {name: code for code, name in enumerate(SPLITS)}
TRAIN, VAL, TEST, UNLABELED = (SPLIT_CODE[name] for name in SPLITS)  # of two, the larger protects more


def _no_flags() -> NDArray[np.bool_]:
    return np.zeros(0, np.bool_)


@dataclass(frozen=True)
class Items:
    """A row for every item; `scan` makes the table, and later steps add columns, change or drop rows.

    Attributes
    ----------
    place : int64; the row of its square and its thumbnail in the scratch files, and of its name
    sample_id : uint64 (`ids.hex_ids`); equal for equal encoded bytes
    pixel_key : uint64; equal exactly where the decoded pixels are equal
    perceptual : uint64; `perceptual.perceptual_hashes`
    flat : bool; too little contrast for the perceptual hash to mean anything
    label : int32, index into `classes`; `NO_LABEL` where there is none
    split : int8, index into `ids.SPLITS`; `NO_SPLIT` where it is to be dealt
    group : uint64, a hash of the name that the source gives its group, 0 for none; from `resolve` on
        the smallest `sample_id` of those that must not be separated
    weight : float32
    width, height : int32, native size in pixels, upright
    names : string, by place; where an item came from, for tables
    classes : class names in index order
    second : int32, index into `second_classes`, `NO_LABEL` where there is none; None where the source has
        no second column of labels
    second_classes : its class names, sorted
    brought : bool, the split is what the source brings; this and the next two are `splits.assign`'s
    trains : bool; to be dealt, and the source calls it training
    frozen : int8; the frozen split, `NO_SPLIT` where there is none
    old : bool, in the split that it was frozen in; this and the next are `resolve.collapse`'s
    disputed : bool, without a label because its copies' labels differ
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
    names: pa.ChunkedArray
    classes: list[str]
    second: NDArray[np.int32] | None = None
    second_classes: list[str] = field(default_factory=list)
    brought: NDArray[np.bool_] = field(default_factory=_no_flags)
    trains: NDArray[np.bool_] = field(default_factory=_no_flags)
    frozen: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    old: NDArray[np.bool_] = field(default_factory=_no_flags)
    disputed: NDArray[np.bool_] = field(default_factory=_no_flags)

    def __len__(self) -> int:
        return len(self.place)

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Items:
        """Return some of the rows, in the order asked for."""
        columns: dict[str, Any] = {
            name: column[rows]
            for name, column in vars(self).items()
            if isinstance(column, np.ndarray) and len(column)
        }
        return replace(self, **columns)

    def sources(self, rows: NDArray[np.int64] | slice = slice(None)) -> list[str]:
        """Return where some rows came from."""
        places = self.place[rows]
        chunks = self.names.chunks  # `take` on all of them would copy the whole column
        ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        number = np.searchsorted(ends, places, side="right")
        order = np.argsort(number, kind="stable")
        names = np.empty(len(places), object)
        for part in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
            if len(part):
                chunk = chunks[number[part[0]]]
                start = ends[number[part[0]]] - len(chunk)
                names[part] = chunk.take(pa.array(places[part] - start)).to_pylist()
        return names.tolist()

    def label_names(self, labels: NDArray[np.int32]) -> list[str | None]:
        """Return class names, None for `NO_LABEL`."""
        return [None if label == NO_LABEL else self.classes[label] for label in labels.tolist()]

    def counts(self) -> pd.DataFrame:
        """Count the labelled rows of each class and split: `class`, `split`, `count`."""
        splits = SPLITS[:3]
        table = np.zeros((len(self.classes), len(splits)), np.int64)
        labelled = self.label != NO_LABEL
        np.add.at(table, (self.label[labelled], self.split[labelled]), 1)
        return pd.DataFrame(
            {
                "class": np.repeat(np.asarray(self.classes, dtype=object), len(splits)),
                "split": list(splits) * len(self.classes),
                "count": table.ravel(),
            }
        )


def split_names(splits: NDArray[np.int8]) -> list[str | None]:
    """Return names of splits, None for `NO_SPLIT`."""
    return [None if code == NO_SPLIT else SPLITS[code] for code in splits.tolist()]


def text_table(columns: dict[str, Any], order: Sequence[str]) -> pd.DataFrame:
    """Return a table of text columns, of the same types also where it is empty."""
    return pd.DataFrame(columns, columns=list(order)).astype("str")
