"""Images without a split are dealt: stratified by class, in groups, by hash and not by order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.reading.found import NO_SPLIT, SPLIT_CODE
from stages.samples.splits import TEST, TRAIN, UNLABELED, VAL

_ROWS = 65536  # that are Python objects at once


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
    """How many images of each class should be in train, val and test; int64, classes×3."""
    targets = np.zeros((len(total), 3), np.int64)
    spare = np.maximum(total - 1, 0)
    for code, share in shares.items():
        least = 1 if share > 0 else 0
        targets[:, code] = np.minimum(np.maximum(np.rint(share * total).astype(np.int64), least), spare)
        spare -= targets[:, code]
    targets[:, TRAIN] = total - targets.sum(axis=1)
    return targets


def _ranks(sample_id: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The first 64 bits by which `hash_order` sorts the ids, for the purpose of `split`."""
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
    """The split of each unit; `have`, the images of each class by split, is brought up to date."""
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
    """By how much a unit in a split raises the split's squared deviation, by target."""
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
    """The split of each single image: each class's first by rank test, the next validate."""
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
