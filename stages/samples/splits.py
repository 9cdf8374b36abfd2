"""What is known of the splits before any is dealt: what the source says, and what people froze."""

from __future__ import annotations

import csv
import hashlib
import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import WinnowError
from stages.ids import SPLITS, Split, number_of
from stages.reading.found import NO_LABEL, NO_SPLIT, SPLIT_CODE

HEADER = ["sample_id", "split"]
TRAIN, VAL, TEST, UNLABELED = (SPLIT_CODE[name] for name in SPLITS)  # of two, the larger protects more
_DEALT: tuple[Split, ...] = ("train", "val", "test")
_ID = re.compile(r"[0-9a-f]{16}")
_ROWS = 65536  # that are Python objects at once


def hash_order(ids: Iterable[str], purpose: str) -> list[str]:
    """Ids in an order that looks random, and that neither their order nor other ids change."""
    return sorted(ids, key=lambda sample_id: hashlib.sha256(f"{purpose}/{sample_id}".encode()).digest())


# --- frozen splits -----------------------------------------------------------------------------


@dataclass(frozen=True)
class FrozenSplits:
    """Splits that people decided.

    Attributes
    ----------
    sample_id : uint64, K; ascending, each once
    split : int8, K; index into `ids.SPLITS`, of train, val or test
    """

    sample_id: NDArray[np.uint64]
    split: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.sample_id)

    def lookup(self, ids: NDArray[np.uint64]) -> NDArray[np.int8]:
        """The split of each id as an index into `ids.SPLITS`, `NO_SPLIT` where it is not frozen."""
        if not len(self):
            return np.full(len(ids), NO_SPLIT, np.int8)
        row = np.minimum(np.searchsorted(self.sample_id, ids), len(self) - 1)
        return np.where(self.sample_id[row] == ids, self.split[row], np.int8(NO_SPLIT))


def read_frozen(path: Path) -> FrozenSplits:
    """Splits by `sample_id` from a CSV of the columns `sample_id,split`.

    Raises
    ------
    WinnowError
        With the number of the line that is malformed, or that contradicts one further up.
    """
    if not path.is_file():
        raise WinnowError(f"{path} is not there: make it with the line {','.join(HEADER)}")
    ids, splits, lines = array("Q"), array("b"), array("Q")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            if next(reader, None) != HEADER:
                raise WinnowError(f"{path}, line 1: the header must be {','.join(HEADER)}")
            for row in reader:
                if row:
                    sample_id, split = _checked(row, f"{path}, line {reader.line_num}")
                    ids.append(number_of(sample_id))
                    splits.append(SPLIT_CODE[split])
                    lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise WinnowError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return _each_once(path, np.array(ids, np.uint64), np.array(splits, np.int8), np.array(lines, np.uint64))


def _checked(row: list[str], where: str) -> tuple[str, Split]:
    if len(row) != len(HEADER):
        raise WinnowError(f"{where}: {len(row)} columns instead of {','.join(HEADER)}")
    sample_id, split = (cell.strip() for cell in row)
    if not _ID.fullmatch(sample_id):
        raise WinnowError(f"{where}: sample_id {sample_id!r} is not 16 lower-case hexadecimal digits")
    if split not in _DEALT:
        raise WinnowError(f"{where}: split {split!r} is none of {', '.join(_DEALT)}")
    return sample_id, split


def _each_once(
    path: Path, ids: NDArray[np.uint64], splits: NDArray[np.int8], lines: NDArray[np.uint64]
) -> FrozenSplits:
    unique, first, number = np.unique(ids, return_index=True, return_inverse=True)
    contradicts = np.flatnonzero(splits != splits[first][number])
    if len(contradicts):
        row = contradicts[0]
        above = SPLITS[splits[first[number[row]]]]
        raise WinnowError(
            f"{path}, line {lines[row]}: {ids[row]:016x} is in {SPLITS[splits[row]]}, "
            f"and in {above} further up"
        )
    return FrozenSplits(unique, splits[first])


def write_frozen(path: Path, sample_id: NDArray[np.uint64], split: NDArray[np.int8]) -> int:
    """Write the splits as CSV, sorted by `sample_id`; only train, val and test can be frozen.

    Parameters
    ----------
    path : of the file
    sample_id : uint64, N; one that is there more than once is written once, with its first split
    split : int8, N; index into `ids.SPLITS`

    Returns
    -------
    How many samples are frozen.
    """
    dealt = np.flatnonzero((split >= 0) & (split != UNLABELED))
    ids, first = np.unique(sample_id[dealt], return_index=True)
    codes = split[dealt[first]]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(HEADER) + "\n")
        for start in range(0, len(ids), _ROWS):
            rows = zip(
                ids[start : start + _ROWS].tolist(), codes[start : start + _ROWS].tolist(), strict=True
            )
            file.writelines(f"{number:016x},{SPLITS[code]}\n" for number, code in rows)
    return len(ids)


# --- what is known before any is dealt ---------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What is known of the rows' splits before any is dealt; arrays of N.

    Attributes
    ----------
    label : int32; `NO_LABEL` also where the source says that the row has none to use
    split : int8; index into `ids.SPLITS`, `NO_SPLIT` where it is to be dealt
    brought : bool; the split is what the source brings
    trains : bool; to be dealt, and the source calls it training
    frozen : int8; the frozen split, `NO_SPLIT` where there is none
    splits_brought : the splits that the source itself brings
    overruled : rows of the frozen splits that name another split than the source brings
    absent : rows of the frozen splits for samples that are not there
    unscored : rows that the source puts in validation or test without a label
    unused_labels : rows with a label that the source calls unlabeled
    """

    label: NDArray[np.int32]
    split: NDArray[np.int8]
    brought: NDArray[np.bool_]
    trains: NDArray[np.bool_]
    frozen: NDArray[np.int8]
    splits_brought: frozenset[Split]
    overruled: int
    absent: int
    unscored: int
    unused_labels: int


def assign(
    sample_id: NDArray[np.uint64], label: NDArray[np.int32], split: NDArray[np.int8], frozen: FrozenSplits
) -> Known:
    """Put together what the source brings and what people froze.

    What the source calls training stays open where it brings no validation or no test split:
    those have to come from somewhere. A split without labels is none: it cannot be scored.

    Parameters
    ----------
    sample_id, label, split : columns of `found.Found`
    frozen : what people decided
    """
    unlabeled = (label == NO_LABEL) | (split == UNLABELED)
    codes = np.unique(split[~unlabeled])
    brought = frozenset(SPLITS[code] for code in codes.tolist() if code != NO_SPLIT)
    complete = {"val", "test"} <= brought
    given = (split != NO_SPLIT) & ((split != TRAIN) | complete) & ~unlabeled
    wanted = frozen.lookup(sample_id)
    there = wanted != NO_SPLIT
    # A source that has come to bring all splits does not make training images of old test images.
    given &= ~((split == TRAIN) & ((wanted == VAL) | (wanted == TEST)))
    known = np.where(given, split, wanted)
    known[unlabeled] = UNLABELED
    return Known(
        label=np.where(unlabeled, np.int32(NO_LABEL), label),
        split=known,
        brought=given,
        trains=(known == NO_SPLIT) & (split == TRAIN),
        frozen=wanted,
        splits_brought=brought,
        overruled=len(np.unique(sample_id[given & there & (wanted != split)])),
        absent=len(frozen) - len(np.unique(sample_id[there])),
        unscored=int(((label == NO_LABEL) & ((split == VAL) | (split == TEST))).sum()),
        unused_labels=int(((label != NO_LABEL) & (split == UNLABELED)).sum()),
    )
