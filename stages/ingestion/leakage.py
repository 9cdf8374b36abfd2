"""Keep near-duplicates and groups together, and leave out what would leak between splits.

A tie is a set of images that belong together: a pair of near-duplicates, or all images of one group
(a patient, a video). An image that is trained on while one that it is tied to is tested on makes the
test look better than it is: Barz and Denzler, "Do We Train on Test Data? Purging CIFAR of
Near-Duplicates", Journal of Imaging 2020.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.ids import hex_ids
from stages.images.near_duplicates import Pairs, connected_components
from stages.ingestion.items import (
    NO_SPLIT,
    SPLIT_CODE,
    TEST,
    TRAIN,
    UNLABELED,
    VAL,
    Items,
    split_names,
)

NEAR_COLUMNS = ["sample_id", "source", "label", "split", "set", "nearest_id", "similarity", "outcome"]
_NEAR_TYPES = dict.fromkeys(NEAR_COLUMNS, "str") | {"set": "int64", "similarity": "float32"}
_NONE = np.int8(-1)  # rank of an image that is in none of train, val and test


@dataclass(frozen=True)
class Ties:
    """Images and the ties that they are in; the pairs come first, then the groups.

    Attributes
    ----------
    image, tie : int64, K each; an image and a tie that it is in, sorted by tie
    images, count, pairs : number of images, of ties, and of pairs among them
    """

    image: NDArray[np.int64]
    tie: NDArray[np.int64]
    images: int
    count: int
    pairs: int

    def largest(self, rank: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the largest rank of each tie's images."""
        top = np.full(self.count, _NONE)
        np.maximum.at(top, self.tie, rank[self.image])
        return top

    def witness(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return each tie's first image that the mask holds for; `images` where there is none."""
        first = np.full(self.count, self.images)
        chosen = mask[self.image]
        np.minimum.at(first, self.tie[chosen], self.image[chosen])
        return first

    def sets(self, mask: NDArray[np.bool_], *, only_pairs: bool = False) -> NDArray[np.int64]:
        """Return for each image the first one that it is connected to through ties of images in the mask."""
        chosen = mask[self.image] & (self.tie < (self.pairs if only_pairs else self.count))
        image, tie = self.image[chosen], self.tie[chosen]
        linked = tie[1:] == tie[:-1]  # all of a tie, one after the other
        component = connected_components(self.images, image[:-1][linked], image[1:][linked])
        first = np.full(self.images, self.images)
        np.minimum.at(first, component, np.arange(self.images))
        return first[component]


def tie(images: int, pairs: Pairs | None, member: NDArray[np.int64], group: NDArray[np.uint64]) -> Ties:
    """Make ties of pairs and groups.

    Parameters
    ----------
    images : how many there are
    pairs : of indices of images, None for none
    member, group : K each; an image, and the hash of a group that it is in
    """
    count = 0 if pairs is None else len(pairs.first)
    paired = np.zeros(0, np.int64) if pairs is None else np.stack([pairs.first, pairs.second], 1).reshape(-1)
    names, number = np.unique(group, return_inverse=True)
    return Ties(
        image=np.concatenate([paired, member[order := np.lexsort((member, number))]]),
        tie=np.concatenate([np.repeat(np.arange(count), 2), count + number[order]]),
        images=images,
        count=count + len(names),
        pairs=count,
    )


@dataclass(frozen=True)
class Refused:
    """An image that is left out, and the ones that it would leak to.

    Attributes
    ----------
    image : its index
    reason : one of `base.REASONS`
    tied_to : an image that it is tied to, and that one's split; two where it would be a bridge
    how : `near` where it is a near-duplicate of that one, `grouped` in one group with it, `connected`
        over others
    """

    image: int
    reason: Literal["leakage", "bridges_splits"]
    tied_to: tuple[tuple[int, int], ...]
    how: Literal["near", "grouped", "connected"]


@dataclass
class Settled:
    """The splits of M images as the ties have them.

    Attributes
    ----------
    split : int8, as known or joined; `NO_SPLIT` for what is to be dealt
    unit : int64, the first of the images that are dealt together; itself elsewhere
    left_out : bool
    joined : bool, took the split of images that it is tied to
    refused : an entry for each image that is left out
    leaking_pairs, leaking_groups : ties that straddle known splits, other than these:
    old_ties : between images that were frozen in different splits
    """

    split: NDArray[np.int8]
    unit: NDArray[np.int64]
    left_out: NDArray[np.bool_]
    joined: NDArray[np.bool_]
    refused: list[Refused] = field(default_factory=list)
    leaking_pairs: int = 0
    leaking_groups: int = 0
    old_ties: int = 0

    @property
    def rank(self) -> NDArray[np.int8]:
        """The split, of which the larger protects more; -1 for what is in none of train, val and test."""
        return np.where(self.left_out | (self.split == UNLABELED), _NONE, self.split)

    def leave_out_tied(
        self, ties: Ties, weaker: NDArray[np.bool_], stronger: NDArray[np.bool_], split: int
    ) -> None:
        """Leave out those of `weaker` that are tied to one of `stronger`, which are in `split`."""
        witness = ties.witness(stronger)
        weaker = weaker & ~self.left_out
        rows = np.flatnonzero(weaker[ties.image] & (witness[ties.tie] < ties.images))
        image, tied_to, near = ties.image[rows], witness[ties.tie[rows]], ties.tie[rows] < ties.pairs
        order = np.lexsort((tied_to, ~near, image))
        image, first = np.unique(image[order], return_index=True)
        tied_to, near = tied_to[order[first]], near[order[first]]
        self.left_out[image] = True
        self.refused += [
            Refused(a, "leakage", ((b, split),), "near" if is_near else "grouped")
            for a, b, is_near in zip(image.tolist(), tied_to.tolist(), near.tolist(), strict=True)
        ]

    def leave_out_connected(
        self, ties: Ties, weaker: NDArray[np.bool_], stronger: NDArray[np.bool_], split: int
    ) -> None:
        """Leave out as well those that are connected to `stronger` only over others of `weaker`."""
        weaker = weaker & ~self.left_out
        self.leave_out_tied(ties, weaker, stronger, split)
        sets = ties.sets(weaker | stronger)
        witness = np.full(ties.images, ties.images)
        strong = np.flatnonzero(stronger)
        np.minimum.at(witness, sets[strong], strong)
        over = np.flatnonzero(weaker & ~self.left_out & (witness[sets] < ties.images))
        self.left_out[over] = True
        self.refused += [
            Refused(image, "leakage", ((int(witness[sets[image]]), split),), "connected")
            for image in over.tolist()
        ]


def settle(
    split: NDArray[np.int8],
    trains: NDArray[np.bool_],
    old: NDArray[np.bool_],
    ties: Ties,
    brought: Collection[str],
    leaked: Literal["leave_out", "keep"],
) -> Settled:
    """Decide what the ties mean for images whose split is known, and for those that are to be dealt.

    Where a tie, or several in a chain, straddle known splits, the images in the split that comes last
    in test, val, train are left out; but an old one stays whatever is added, so the new one goes.
    Ties between old ones stay, and are counted. Nothing joins a split that the source brings, which is
    used as it stands: it is left out beside it. With `keep` all of them stay.

    Images to be dealt that are connected through ties follow the images that they are tied to. Where
    those are in several splits, all of them are left out, as two of them would be separated.

    Parameters
    ----------
    split : int8, M; `NO_SPLIT` where it is to be dealt
    trains : bool, M; to be dealt, and called training by the source
    old : bool, M; in the split that it was frozen in
    ties : pairs and groups of the same images
    brought : the splits that the source brings
    leaked : whether images of known splits that leak are left out; with `keep` they are only counted
    """
    settled = Settled(
        split.copy(), np.arange(len(split)), np.zeros(len(split), bool), np.zeros(len(split), bool)
    )
    barred = [SPLIT_CODE[name] for name in ("val", "test") if name in brought]
    if not ties.count:
        return settled
    _count_leaks(settled, ties, trains, old, barred)
    if leaked == "leave_out":
        for level in (TEST, VAL, TRAIN):
            rank = settled.rank
            new = ~old & (rank >= 0) & (rank != level)
            settled.leave_out_connected(ties, new, old & (rank == level), level)
        for level in (TEST, VAL):
            rank = settled.rank
            lower = ~old & (rank >= 0) & (rank < level)
            if level in barred:
                lower |= trains
            settled.leave_out_connected(ties, lower, rank == level, level)
            if level in barred:
                settled.leave_out_tied(ties, settled.split == NO_SPLIT, rank == level, level)
    _join(settled, ties, trains, barred, leaked)
    return settled


def _straddling(ties: Ties, rank: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Tell which ties hold images of two ranks."""
    top = ties.largest(rank)
    bottom = TEST - ties.largest(np.where(rank >= 0, np.int8(TEST) - rank, _NONE))
    return (top >= 0) & (top != bottom)


def _count_leaks(
    settled: Settled, ties: Ties, trains: NDArray[np.bool_], old: NDArray[np.bool_], barred: list[int]
) -> None:
    rank = settled.rank
    of_training = ties.largest(np.where(trains, np.int8(TRAIN), _NONE)) >= 0
    of_barred = ties.largest(np.where(np.isin(rank, barred), rank, _NONE)) >= 0
    of_old = _straddling(ties, np.where(old, rank, _NONE))
    leaks = (_straddling(ties, rank) | (of_training & of_barred)) & ~of_old
    settled.leaking_pairs = int(leaks[: ties.pairs].sum())
    settled.leaking_groups = int(leaks[ties.pairs :].sum())
    settled.old_ties = int(of_old.sum())


def _join(
    settled: Settled,
    ties: Ties,
    trains: NDArray[np.bool_],
    barred: list[int],
    leaked: Literal["leave_out", "keep"],
) -> None:
    """Give the images to be dealt the split of those they are tied to, each connected set as a whole."""
    rank = settled.rank
    is_open = (settled.split == NO_SPLIT) & ~settled.left_out
    settled.unit = unit = ties.sets(is_open)
    # Of each set an image in each split that it is tied to.
    near = np.full((3, ties.images), ties.images, np.int32)
    for level in (TRAIN, VAL, TEST):
        witness = ties.witness(rank == level)
        follows = is_open & ~trains if level in barred else is_open
        rows = np.flatnonzero(follows[ties.image] & (witness[ties.tie] < ties.images))
        np.minimum.at(near[level], unit[ties.image[rows]], witness[ties.tie[rows]].astype(np.int32))
    tied = near < ties.images
    splits = tied.sum(axis=0, dtype=np.int8)[unit]
    target = tied.argmax(axis=0).astype(np.int8)[unit]
    joins = is_open & (splits == 1)
    torn = joins & np.isin(target, barred)
    settled.joined = joins & ~torn
    settled.split[settled.joined] = target[settled.joined]
    if leaked == "keep":
        settled.split[torn & trains] = TRAIN
        settled.split[torn & ~trains] = target[torn & ~trains]
        torn = np.zeros_like(torn)
    settled.left_out |= torn | (is_open & (splits > 1))
    for image in np.flatnonzero(torn).tolist():
        level = int(target[image])
        settled.refused.append(
            Refused(image, "leakage", ((int(near[level, unit[image]]), level),), "connected")
        )
    for image in np.flatnonzero(is_open & (splits > 1)).tolist():
        levels = [level for level in (TEST, VAL, TRAIN) if tied[level, unit[image]]]
        tied_to = tuple((int(near[level, unit[image]]), level) for level in levels[:2])
        settled.refused.append(Refused(image, "bridges_splits", tied_to, "connected"))


def leave_out_unlabeled(settled: Settled, ties: Ties) -> None:
    """Leave out unlabeled images tied to validation or test: a label would bring them to training.

    `settled.split` is complete by then.
    """
    for level in (TEST, VAL):
        settled.leave_out_tied(ties, settled.split == UNLABELED, settled.rank == level, level)


def straddling_sets(settled: Settled, ties: Ties) -> int:
    """Count the sets of near-duplicates that are in more than one of train, val and test after all."""
    inside = settled.rank >= 0
    sets = ties.sets(inside, only_pairs=True)[inside]
    splits = np.zeros((ties.images, 3), np.bool_)
    splits[sets, settled.rank[inside]] = True
    return int((splits.sum(axis=1) > 1).sum())


def near_table(images: Items, settled: Settled, ties: Ties, pairs: Pairs | None) -> pd.DataFrame:
    """Tell what became of each image in a near-duplicate pair; `settled.split` is complete by then.

    Returns
    -------
    `NEAR_COLUMNS`, ascending by image. `set` is the number of the connected set, by its first image, from
    0; `nearest_id` the most similar image, of several the first, and `similarity` to it. `outcome` is
    `left_out`; `joined` where it took the others' split; `kept` where it stays while one of its pairs is
    left out or in another split; else `grouped`. Without pairs there are no rows.
    """
    if pairs is None:
        return pd.DataFrame(columns=NEAR_COLUMNS).astype(_NEAR_TYPES)
    image = np.concatenate([pairs.first, pairs.second])
    other = np.concatenate([pairs.second, pairs.first])
    similarity = np.concatenate([pairs.similarity, pairs.similarity])
    order = np.lexsort((other, -similarity, image))
    unique, first = np.unique(image[order], return_index=True)
    nearest = order[first]
    sets = ties.sets(np.ones(ties.images, bool), only_pairs=True)[unique]

    split = np.where(settled.left_out, _NONE, settled.split)
    apart = np.zeros(ties.images, bool)
    differs = (split[image] != split[other]) & (
        (settled.rank[image] >= VAL) | (settled.rank[other] >= VAL) | (split[other] == _NONE)
    )
    apart[image[differs]] = True
    outcomes = [settled.left_out[unique], settled.joined[unique], apart[unique]]
    columns = {
        "sample_id": hex_ids(images.sample_id[unique]),
        "source": images.sources(unique),
        "label": images.label_names(images.label[unique]),
        "split": split_names(settled.split[unique]),
        "set": np.unique(sets, return_inverse=True)[1],
        "nearest_id": hex_ids(images.sample_id[other[nearest]]),
        "similarity": similarity[nearest],
        "outcome": np.select(outcomes, ["left_out", "joined", "kept"], "grouped"),
    }
    return pd.DataFrame(columns, columns=NEAR_COLUMNS).astype(_NEAR_TYPES)
