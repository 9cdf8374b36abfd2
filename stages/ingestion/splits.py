"""Read and write frozen splits, put them together with the source's own, and deal the rest.

Images without a split are dealt stratified by class, in groups, by hash and not by order.
"""

from __future__ import annotations

import csv
import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS, Split, number_of
from stages.errors import WinnowError
from stages.ingestion.items import NO_LABEL, NO_SPLIT, SPLIT_CODE, TEST, TRAIN, UNLABELED, VAL, Items

HEADER = ["sample_id", "split"]
_DEALT: tuple[Split, ...] = ("train", "val", "test")
_ID = re.compile(r"[0-9a-f]{16}")
_ROWS = 65536  # that are Python objects at once


def hash_order(ids: Iterable[str], purpose: str) -> list[str]:
    """Sort ids into an order that looks random, and that neither their order nor other ids change."""
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
        """Return the split of each id as an index into `ids.SPLITS`, `NO_SPLIT` where it is not frozen."""
        if not len(self):
            return np.full(len(ids), NO_SPLIT, np.int8)
        row = np.minimum(np.searchsorted(self.sample_id, ids), len(self) - 1)
        return np.where(self.sample_id[row] == ids, self.split[row], np.int8(NO_SPLIT))


def read_frozen(path: Path) -> FrozenSplits:
    """Read splits by `sample_id` from a CSV of the columns `sample_id,split`.

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


class GivenSplits(NamedTuple):
    """What is known of the splits before any is dealt.

    Attributes
    ----------
    brought : the splits that the source itself brings
    overruled : rows of the frozen splits that name another split than the source brings
    absent : rows of the frozen splits for samples that are not there
    unscored : items that the source puts in validation or test without a label
    unused_labels : items with a label that the source calls unlabeled
    """

    brought: frozenset[Split]
    overruled: int
    absent: int
    unscored: int
    unused_labels: int


def assign(items: Items, frozen: FrozenSplits) -> tuple[Items, GivenSplits]:
    """Put together what the source brings and what people froze.

    What the source calls training stays open where it brings no validation or no test split:
    those have to come from somewhere. A split without labels is none: it cannot be scored.

    Returns
    -------
    The items with `brought`, `trains` and `frozen`; `label` and `split` are what is known. And counts.
    """
    sample_id, label, split = items.sample_id, items.label, items.split
    unlabeled = (label == NO_LABEL) | (split == UNLABELED)
    codes = np.unique(split[~unlabeled])
    brought = frozenset(SPLITS[code] for code in codes.tolist() if code != NO_SPLIT)
    complete = {"val", "test"} <= brought
    given = (split != NO_SPLIT) & ((split != TRAIN) | complete) & ~unlabeled
    wanted = frozen.lookup(sample_id)
    is_frozen = wanted != NO_SPLIT
    # A source that has come to bring all splits does not make training images of old test images.
    given &= ~((split == TRAIN) & ((wanted == VAL) | (wanted == TEST)))
    known = np.where(given, split, wanted)
    known[unlabeled] = UNLABELED
    assigned = replace(
        items,
        label=np.where(unlabeled, np.int32(NO_LABEL), label),
        split=known,
        brought=given,
        trains=(known == NO_SPLIT) & (split == TRAIN),
        frozen=wanted,
    )
    return assigned, GivenSplits(
        brought=brought,
        overruled=len(np.unique(sample_id[given & is_frozen & (wanted != split)])),
        absent=len(frozen) - len(np.unique(sample_id[is_frozen])),
        unscored=int(((label == NO_LABEL) & ((split == VAL) | (split == TEST))).sum()),
        unused_labels=int(((label != NO_LABEL) & (split == UNLABELED)).sum()),
    )


def deal(
    sample_id: NDArray[np.uint64],
    label: NDArray[np.int32],
    split: NDArray[np.int8],
    unit: NDArray[np.int64],
    brought: Collection[str],
    val_share: float,
    test_share: float,
) -> NDArray[np.int8]:
    """Deal the images without a split, class by class, so that the shares are stratified.

    A split that the source brings is not added to. Shares count from all images of a class outside
    of such splits, also those whose split is known, rounded; but each split gets an image where the
    class has one to spare, and a class with one image has it in training.

    Images that must not be separated go first, the largest units before the smaller: each to the
    split whose class counts come nearest to their targets by it (squared deviation by target; a
    greedy choice as in Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label
    Data", ECML PKDD 2011). Single images fill what is missing, by rank of a hash of their ids.

    Parameters
    ----------
    sample_id : uint64, M; ascending, each once
    label : int32, M; not `NO_LABEL` where there is something to deal
    split : int8, M; index into `ids.SPLITS`, `NO_SPLIT` where it is to be dealt; unlabeled images
        take no part
    unit : int64, M; index of the first image of those that must not be separated; only compared
        among images to be dealt
    brought : the splits that the source brings
    val_share, test_share : 0 to 1

    Returns
    -------
    The split of every image, int8, M.
    """
    split = split.copy()
    is_open = split == NO_SPLIT
    if not is_open.any():
        return split
    shares = {
        TEST: 0.0 if "test" in brought else test_share,
        VAL: 0.0 if "val" in brought else val_share,
    }
    classes = int(label.max()) + 1
    ready = [SPLIT_CODE[name] for name in ("val", "test") if name in brought]
    counted = (split != UNLABELED) & ~np.isin(split, ready)
    targets = _targets(np.bincount(label[counted], minlength=classes), shares)
    fixed = (split != UNLABELED) & ~is_open
    have = np.bincount(label[fixed] * np.int64(3) + split[fixed], minlength=classes * 3).reshape(classes, 3)

    size = np.bincount(unit[is_open], minlength=len(unit))
    together = np.flatnonzero(is_open & (size[unit] > 1))
    single = np.flatnonzero(is_open & (size[unit] == 1))
    options = [code for code, share in shares.items() if share > 0] + [TRAIN]
    units = _units(sample_id, label, unit, together)
    chosen = _deal_units(units, have, targets, options)
    with_singles = np.bincount(label[single], minlength=classes) > 0  # these leave one in training
    _leave_none_untrained(units, chosen, have, (have[:, TRAIN] > 0) | with_singles)
    split[together[units.rows]] = np.repeat(np.array(chosen, np.int8), units.sizes)
    split[single] = _deal_singles(sample_id[single], label[single], have, targets, shares)
    return split


def _targets(total: NDArray[np.int64], shares: dict[int, float]) -> NDArray[np.int64]:
    """Compute how many images of each class should be in train, val and test; int64, classes×3."""
    targets = np.zeros((len(total), 3), np.int64)
    spare = np.maximum(total - 1, 0)
    for code, share in shares.items():
        least = 1 if share > 0 else 0
        targets[:, code] = np.minimum(np.maximum(np.rint(share * total).astype(np.int64), least), spare)
        spare -= targets[:, code]
    targets[:, TRAIN] = total - targets.sum(axis=1)
    return targets


def _ranks(sample_id: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Compute the first 64 bits by which `hash_order` sorts the ids, for the purpose of `split`."""
    ranks = np.empty(len(sample_id), np.uint64)
    for start in range(0, len(ranks), _ROWS):
        numbers = sample_id[start : start + _ROWS].tolist()
        digests = [hashlib.sha256(f"split/{number:016x}".encode()).digest()[:8] for number in numbers]
        ranks[start : start + _ROWS] = np.frombuffer(b"".join(digests), ">u8")
    return ranks


@dataclass(frozen=True)
class _Units:
    """Images that must not be separated, the units in the order in which they are dealt.

    `rows` are positions among the images given, a unit's side by side; `counts` are the images of
    each class in each unit; `sizes` the images of each unit.
    """

    rows: NDArray[np.int64]
    counts: list[Counter[int]]
    sizes: NDArray[np.int64]


def _units(
    sample_id: NDArray[np.uint64],
    label: NDArray[np.int32],
    unit: NDArray[np.int64],
    together: NDArray[np.int64],
) -> _Units:
    first, number, sizes = np.unique(unit[together], return_inverse=True, return_counts=True)
    order = np.lexsort((_ranks(sample_id[first]), -sizes))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    rows = np.argsort(place[number], kind="stable")
    sizes = sizes[order]
    ends = np.cumsum(sizes)
    labels = label[together[rows]]
    counts = [
        Counter(labels[end - size : end].tolist())
        for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)
    ]
    return _Units(rows, counts, sizes)


def _deal_units(
    units: _Units, have: NDArray[np.int64], targets: NDArray[np.int64], options: list[int]
) -> list[int]:
    """Choose the split of each unit; `have`, the images of each class by split, is brought up to date."""
    chosen: list[int] = []
    held, wanted = have.tolist(), targets.tolist()  # plain lists are quicker than arrays one by one
    for counts in units.counts:
        best = min(options, key=lambda code: _cost(counts, code, held, wanted))
        chosen.append(best)
        for index, count in counts.items():
            held[index][best] += count
    have[:] = held
    return chosen


def _cost(counts: Counter[int], code: int, held: list[list[int]], wanted: list[list[int]]) -> float:
    """Compute by how much a unit in a split raises the split's squared deviation, by target."""
    cost = 0.0
    for index, count in counts.items():
        target = wanted[index][code]
        cost += count * (count + 2 * (held[index][code] - target)) / max(target, 1)
    return cost


def _leave_none_untrained(
    units: _Units, chosen: list[int], have: NDArray[np.int64], trained: NDArray[np.bool_]
) -> None:
    """Move the smallest unit of each class without a training image there."""
    without = set(np.flatnonzero(~trained).tolist())
    untrained = {index for counts in units.counts for index in counts if index in without}
    for number in reversed(range(len(chosen))):
        if not untrained:
            return
        counts = units.counts[number]
        if untrained & counts.keys():
            for index, count in counts.items():
                have[index, chosen[number]] -= count
                have[index, TRAIN] += count
            untrained -= counts.keys()
            chosen[number] = TRAIN


def _deal_singles(
    sample_id: NDArray[np.uint64],
    label: NDArray[np.int32],
    have: NDArray[np.int64],
    targets: NDArray[np.int64],
    shares: dict[int, float],
) -> NDArray[np.int8]:
    """Choose the split of each single image: each class's first by rank test, the next validate."""
    order = np.lexsort((sample_id, _ranks(sample_id), label))
    counts = np.bincount(label, minlength=len(have))
    start = np.cumsum(counts) - counts
    turn = np.arange(len(order)) - start[label[order]]
    spare = np.maximum(counts - (have[:, TRAIN] == 0), 0)
    dealt = np.full(len(order), TRAIN, np.int8)
    begin = np.zeros(len(have), np.int64)
    for code, share in shares.items():
        least = (have[:, code] == 0) & (share > 0)
        count = np.minimum(np.maximum(targets[:, code] - have[:, code], least), spare - begin)
        end = begin + count
        dealt[(turn >= begin[label[order]]) & (turn < end[label[order]])] = code
        begin = end
    splits = np.empty(len(order), np.int8)
    splits[order] = dealt
    return splits
