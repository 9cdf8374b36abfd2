"""Exact duplicates: the same pixels more than once, whatever files they came in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from stages.dataset.base import CONFLICT_COLUMNS
from stages.dataset.ids import SPLITS, hex_ids
from stages.ingestion.blocks import NO_LABEL, NO_SPLIT, Found
from stages.ingestion.source import Quarantined
from stages.ingestion.splits import TEST, UNLABELED, VAL, Known

DUPLICATE_COLUMNS = ["sample_id", "source", "label", "split", "kept_id", "kept_source"]
_NAMED = 5  # class names in a detail: an empty picture may stand under hundreds


@dataclass(frozen=True)
class Images:
    """What is left when every image stands there once; arrays of M, ascending by `sample_id`.

    Attributes
    ----------
    position : int64, row of `found.Found`
    sample_id : uint64
    label : int32, `NO_LABEL` for those without
    split : int8, index into `ids.SPLITS`, `NO_SPLIT` where it is to be dealt
    trains : bool, to be dealt, and the source calls it training
    old : bool, frozen, and in the split that it was frozen in
    disputed : bool, without a label because its copies' labels differ
    frozen : bool, in whatever split
    member, group : int64 and uint64, K each; an image and a group that one of its copies is in
    duplicates : `DUPLICATE_COLUMNS`, a row for each item that gave way to another
    conflicts : `dataset.CONFLICT_COLUMNS`, a row for each label that the source gives an image which stands
        under several; `sample_id` is the image's that is kept, `split` the one that it was frozen in
    quarantine : items whose label contradicts the image that is kept
    """

    position: NDArray[np.int64]
    sample_id: NDArray[np.uint64]
    label: NDArray[np.int32]
    split: NDArray[np.int8]
    trains: NDArray[np.bool_]
    old: NDArray[np.bool_]
    disputed: NDArray[np.bool_]
    frozen: NDArray[np.bool_]
    member: NDArray[np.int64]
    group: NDArray[np.uint64]
    duplicates: pd.DataFrame
    conflicts: pd.DataFrame
    quarantine: list[Quarantined]

    def __len__(self) -> int:
        return len(self.position)


def collapse(found: Found, known: Known) -> Images:
    """Keep one item of those with equal pixels: a frozen one, else the smallest `sample_id`.

    It is a labelled one where there is one. It takes the split of its copies that comes first in
    test, val, train, and belongs to the groups of all of them.

    Where the labels differ, the source's own test split (else its validation, else the frozen ones)
    decides if its copies agree: a ready-made split is used as it stands. Otherwise the image is kept
    without a label, for a reviewer to look at. Copies under another label go to quarantine.

    Parameters
    ----------
    found : what the scan found
    known : of the same rows, from `splits.assign`
    """
    copies = _Copies.of(found, known)
    for number in np.flatnonzero(copies.conflict).tolist():
        copies.settle(number, found, known)
    by_id = np.argsort(found.sample_id[copies.kept])
    place = np.empty_like(by_id)
    place[by_id] = np.arange(len(by_id))
    member, group = copies.groups(found, place)
    contradicted = copies.contradicted(known)
    return Images(
        position=copies.kept[by_id],
        sample_id=found.sample_id[copies.kept[by_id]],
        label=copies.label[by_id],
        split=copies.split[by_id],
        trains=copies.any(known.trains)[by_id] & (copies.split[by_id] == NO_SPLIT),
        old=copies.any((known.frozen != NO_SPLIT) & (known.frozen == copies.spread(copies.split)))[by_id],
        disputed=(copies.conflict & (copies.label == NO_LABEL))[by_id],
        frozen=copies.any(known.frozen != NO_SPLIT)[by_id],
        member=member,
        group=group,
        duplicates=copies.duplicates(found, known, contradicted),
        conflicts=copies.claims(found, known),
        quarantine=list(copies.refused(found, known, contradicted)),
    )


@dataclass(frozen=True)
class _Copies:
    """Rows of `found` sorted so that copies of one image stand side by side, the best one first.

    Attributes
    ----------
    order : int64, N; rows
    start : int64, M; where in `order` an image's rows begin
    kept, label, split : M; what is kept of each image, and as what
    conflict : bool, M; whether its copies' labels differ
    """

    order: NDArray[np.int64]
    start: NDArray[np.int64]
    kept: NDArray[np.int64]
    label: NDArray[np.int32]
    split: NDArray[np.int8]
    conflict: NDArray[np.bool_]

    @classmethod
    def of(cls, found: Found, known: Known) -> _Copies:
        none = known.label == NO_LABEL
        order = np.lexsort((found.sample_id, none, known.frozen == NO_SPLIT, found.pixel_key))
        keys = found.pixel_key[order]
        start = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
        label = np.maximum.reduceat(known.label[order], start)
        other = np.where(none, np.iinfo(np.int32).max, known.label)
        protects = np.where(known.split == UNLABELED, np.int8(NO_SPLIT), known.split)
        split = np.maximum.reduceat(protects[order], start)
        split[label == NO_LABEL] = UNLABELED
        conflict = (label != NO_LABEL) & (np.minimum.reduceat(other[order], start) != label)
        return cls(order, start, order[start], label, split, conflict)

    @property
    def count(self) -> NDArray[np.int64]:
        """How many copies each image has."""
        return np.diff(np.append(self.start, len(self.order)))

    def rows(self, number: int) -> NDArray[np.int64]:
        """The rows of one image, the best first."""
        end = self.start[number + 1] if number + 1 < len(self.start) else len(self.order)
        return self.order[self.start[number] : end]

    def any(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of each image whether it holds for one of its rows."""
        return np.logical_or.reduceat(mask[self.order], self.start)

    def spread(self, values: NDArray[np.int8]) -> NDArray[np.int8]:
        """A value of each image as one of each row."""
        spread = np.empty(len(self.order), values.dtype)
        spread[self.order] = np.repeat(values, self.count)
        return spread

    def settle(self, number: int, found: Found, known: Known) -> None:
        """Decide on an image whose copies' labels differ."""
        rows = self.rows(number)
        self.label[number], self.split[number] = NO_LABEL, UNLABELED
        for brought in (True, False):
            for split in (TEST, VAL):
                there = rows[(known.split[rows] == split) & (known.brought[rows] | (not brought))]
                if len(there):
                    if len(np.unique(known.label[there])) == 1:
                        self.kept[number] = there[0]
                        self.label[number], self.split[number] = known.label[there[0]], split
                    return

    def groups(self, found: Found, place: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Images, by their new `place`, and the groups that their copies are in."""
        number = np.repeat(np.arange(len(self.start)), self.count)
        grouped = found.group[self.order] != 0
        return place[number[grouped]], found.group[self.order[grouped]]

    def gone(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that are not kept, by `sample_id`'s stead in `order`, and the images they show."""
        several = np.flatnonzero(np.repeat(self.count > 1, self.count))
        image = np.searchsorted(self.start, several, side="right") - 1
        rest = self.order[several] != self.kept[image]
        return self.order[several[rest]], image[rest]

    def contradicted(self, known: Known) -> NDArray[np.bool_]:
        """Of the rows that are gone those with another label than the image that is kept."""
        rows, image = self.gone()
        return (known.label[rows] != NO_LABEL) & (known.label[rows] != self.label[image])

    def duplicates(self, found: Found, known: Known, contradicted: NDArray[np.bool_]) -> pd.DataFrame:
        """`DUPLICATE_COLUMNS`, sorted by `sample_id` and then as the source has them."""
        rows, image = (column[~contradicted] for column in self.gone())
        order = np.lexsort((rows, found.sample_id[rows]))
        rows, kept = rows[order], self.kept[image[order]]
        table = {
            "sample_id": hex_ids(found.sample_id[rows]),
            "source": sources(found, rows),
            "label": label_names(found, known.label[rows]),
            "split": split_names(known.split[rows]),
            "kept_id": hex_ids(found.sample_id[kept]),
            "kept_source": sources(found, kept),
        }
        return pd.DataFrame(table, columns=DUPLICATE_COLUMNS).astype("str")

    def claims(self, found: Found, known: Known) -> pd.DataFrame:
        """`dataset.CONFLICT_COLUMNS`, sorted by all of them."""
        numbers = np.flatnonzero(self.conflict)
        rows = np.concatenate([np.zeros(0, np.int64), *(self.rows(number) for number in numbers.tolist())])
        kept = np.repeat(self.kept[numbers], self.count[numbers])
        claims = known.label[rows] != NO_LABEL
        rows, kept = rows[claims], kept[claims]
        table = {
            "sample_id": hex_ids(found.sample_id[kept]),
            "label": label_names(found, known.label[rows]),
            "source": sources(found, rows),
            "split": split_names(known.frozen[kept]),
        }
        frame = pd.DataFrame(table, columns=CONFLICT_COLUMNS).astype("str")
        return frame.sort_values(CONFLICT_COLUMNS, ignore_index=True)

    def refused(self, found: Found, known: Known, contradicted: NDArray[np.bool_]) -> Iterator[Quarantined]:
        """A row for each copy under another label than the image's that is kept."""
        rows, image = (column[contradicted] for column in self.gone())
        paths, kept = sources(found, rows), sources(found, self.kept[image])
        told: dict[int, str] = {}
        for path, number, kept_path in zip(paths, image.tolist(), kept, strict=True):
            if number not in told:
                told[number] = self._claimed(number, found, known)
            yield Quarantined(path, "conflicting_labels", f"{told[number]}: {kept_path}")

    def _claimed(self, number: int, found: Found, known: Known) -> str:
        """Which labels an image stands under, and which it goes on with."""
        labels = set(known.label[self.rows(number)].tolist()) - {NO_LABEL}
        names = sorted(found.classes[label] for label in labels)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        label = self.label[number]
        how = "without a label" if label == NO_LABEL else f"as {found.classes[label]}"
        return f"the same pixels under {', '.join(names[:_NAMED])}{more}; one of them goes on {how}"


def sources(found: Found, rows: NDArray[np.int64]) -> list[str]:
    """Where some rows came from."""
    chunks = found.source.chunks  # `take` on all of them would copy the whole column
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    number = np.searchsorted(ends, rows, side="right")
    order = np.argsort(number, kind="stable")
    names = np.empty(len(rows), object)
    for part in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        if len(part):
            chunk = chunks[number[part[0]]]
            names[part] = chunk.take(pa.array(rows[part] - (ends[number[part[0]]] - len(chunk)))).to_pylist()
    return names.tolist()


def label_names(found: Found, labels: NDArray[np.int32]) -> list[str | None]:
    """Class names, None for `NO_LABEL`."""
    return [None if label == NO_LABEL else found.classes[label] for label in labels.tolist()]


def split_names(splits: NDArray[np.int8]) -> list[str | None]:
    """Names of splits, None for `NO_SPLIT`."""
    return [None if code == NO_SPLIT else SPLITS[code] for code in splits.tolist()]
