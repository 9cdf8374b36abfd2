"""Make samples of what was read: each image once, in one split, with nothing that leaks.

Exact duplicates, the same pixels in whatever files, collapse first; near-duplicates and groups are tied
together (`leakage`), and the splits are dealt (`splits`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.base import CONFLICT_COLUMNS
from stages.dataset.ids import SPLITS, Split, hex_ids
from stages.images.near_duplicates import Pairs
from stages.ingestion.items import (
    NO_LABEL,
    NO_SPLIT,
    TEST,
    UNLABELED,
    VAL,
    Items,
    split_names,
    text_table,
)
from stages.ingestion.leakage import (
    Settled,
    Ties,
    leave_out_unlabeled,
    near_table,
    settle,
    straddling_sets,
    tie,
)
from stages.ingestion.source import Quarantined
from stages.ingestion.splits import FrozenSplits, GivenSplits, assign, deal

DUPLICATE_COLUMNS = ["sample_id", "source", "label", "split", "kept_id", "kept_source"]
_NAMED = 5  # class names in a detail: an empty picture may stand under hundreds
_LARGE, _MANY = 0.05, 20  # a set of more than this share, and of more than so many images, is odd
_TIED = {
    "near": "a near-duplicate of {}",
    "grouped": "in one group with {}",
    "connected": "connected, over near-duplicates or groups, with {}",
}


@dataclass(frozen=True)
class Resolved:
    """The samples, and what became of the other items.

    Attributes
    ----------
    samples : ascending by `sample_id`
    brought : the splits that the source itself brings
    duplicates : `DUPLICATE_COLUMNS`, a row for each item that gave way to another with its pixels
    near_duplicates : `leakage.NEAR_COLUMNS`, a row for each image in a near-duplicate pair; `split` is null
        where it was left out before it had one
    conflicts : `dataset.CONFLICT_COLUMNS`, a row for each label that the source gives an image which stands
        under several; `sample_id` is the image's that is kept, `split` the one that it was frozen in
    quarantine : items that became neither a sample nor a duplicate
    facts : counts of all this
    warnings : a line each
    """

    samples: Items
    brought: frozenset[Split]
    duplicates: pd.DataFrame
    near_duplicates: pd.DataFrame
    conflicts: pd.DataFrame
    quarantine: list[Quarantined]
    facts: dict[str, int]
    warnings: list[str]


def resolve(
    items: Items,
    frozen: FrozenSplits,
    find_pairs: Callable[[Items], Pairs] | None,
    *,
    val_share: float,
    test_share: float,
    leaked: Literal["leave_out", "keep"],
) -> Resolved:
    """Collapse exact duplicates, tie near-duplicates and groups together, and give out the splits.

    Neither the order of rows nor what else is there decides on an image, except through its class's
    counts and its ties; and with frozen splits an old sample stays where it is.

    Parameters
    ----------
    items : what the scan found
    frozen : what people decided on the splits
    find_pairs : finds the pairs of near-duplicates among images ascending by `sample_id`; None for not
        looking
    val_share, test_share : 0 to 1; for splits that the source does not bring
    leaked : what becomes of an image that is tied to one in a split that protects more
    """
    items, given = assign(items, frozen)
    images, member, group, duplicates, conflicts, contradicted = collapse(items)
    pairs = find_pairs(images) if find_pairs and len(images) else None
    ties = tie(len(images), pairs, member, group)
    settled = settle(images.split, images.trains, images.old, ties, given.brought, leaked)
    before = settled.split.copy()
    settled.split = deal(
        images.sample_id,
        images.label,
        np.where(settled.left_out, np.int8(UNLABELED), settled.split),
        settled.unit,
        given.brought,
        val_share,
        test_share,
    )
    settled.split[settled.left_out] = before[settled.left_out]
    if leaked == "leave_out":
        leave_out_unlabeled(settled, ties)

    stays = ~settled.left_out
    near = near_table(images, settled, ties, pairs)
    facts = {
        "splits_frozen": int((images.old & stays).sum()),
        "splits_frozen_absent": given.absent,
        "splits_frozen_overruled": given.overruled,
        "duplicates": len(duplicates),
        "conflicts": conflicts["sample_id"].nunique(),
        "conflicts_for_review": int((images.disputed & stays).sum()),
        "conflicts_frozen": int((images.disputed & (images.frozen != NO_SPLIT)).sum()),
        "near_duplicates": len(near),
        "near_duplicate_sets": near["set"].nunique(),
        "groups": len(np.unique(group)),
        "joined": int(settled.joined.sum()),
        "left_out": int(settled.left_out.sum()),
        "leaking_pairs": settled.leaking_pairs,
        "leaking_groups": settled.leaking_groups,
        "near_duplicate_sets_in_several_splits": straddling_sets(settled, ties),
    }
    grouped = replace(images, split=settled.split, group=images.sample_id[ties.sets(stays)])
    return Resolved(
        samples=grouped.at(stays),
        brought=given.brought,
        duplicates=duplicates,
        near_duplicates=near,
        conflicts=conflicts,
        quarantine=[*contradicted, *_left_out(images, settled)],
        facts=facts,
        warnings=[
            *_warnings_of_splits(given),
            *_warnings_of_ties(facts, settled, ties, leaked, pairs is not None and pairs.cut_short),
        ],
    )


# --- exact duplicates --------------------------------------------------------------------------


class Collapsed(NamedTuple):
    """Every image once, and what became of its other copies.

    Attributes
    ----------
    images : ascending by `sample_id`
    member, group : int64 and uint64, K each; an image and a group that one of its copies is in
    duplicates, conflicts : as in `Resolved`
    contradicted : items whose label contradicts the image that is kept
    """

    images: Items
    member: NDArray[np.int64]
    group: NDArray[np.uint64]
    duplicates: pd.DataFrame
    conflicts: pd.DataFrame
    contradicted: list[Quarantined]


def collapse(items: Items) -> Collapsed:
    """Keep one item of those with equal pixels: a frozen one, else the smallest `sample_id`.

    It is a labelled one where there is one. It takes the split of its copies that comes first in
    test, val, train, and belongs to the groups of all of them.

    Where the labels differ, the source's own test split (else its validation, else the frozen ones)
    decides if its copies agree: a ready-made split is used as it stands. Otherwise the image is kept
    without a label, for a reviewer to look at. Copies under another label go to quarantine.
    """
    # Copies of one image side by side, the best one first.
    unlabeled, is_frozen = items.label == NO_LABEL, items.frozen != NO_SPLIT
    order = np.lexsort((items.sample_id, unlabeled, ~is_frozen, items.pixel_key))
    keys = items.pixel_key[order]
    start = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    count = np.diff(np.append(start, len(order)))

    chosen = order[start]
    label = np.maximum.reduceat(items.label[order], start)
    lowest = np.minimum.reduceat(np.where(unlabeled, np.iinfo(np.int32).max, items.label)[order], start)
    conflict = (label != NO_LABEL) & (lowest != label)
    protects = np.where(items.split == UNLABELED, np.int8(NO_SPLIT), items.split)
    split = np.maximum.reduceat(protects[order], start)
    split[label == NO_LABEL] = UNLABELED
    for number in np.flatnonzero(conflict).tolist():
        rows = order[start[number] : start[number] + count[number]]
        label[number], split[number] = NO_LABEL, UNLABELED
        if (row := _deciding(items, rows)) is not None:
            chosen[number], label[number], split[number] = row, items.label[row], items.split[row]

    copy_of = np.empty(len(order), np.int64)  # of each item the number of its image
    copy_of[order] = np.repeat(np.arange(len(start)), count)
    trains = np.logical_or.reduceat(items.trains[order], start)
    old = np.logical_or.reduceat((is_frozen & (items.frozen == split[copy_of]))[order], start)
    by_id = np.argsort(items.sample_id[chosen])
    images = replace(
        items.at(chosen[by_id]),
        label=label[by_id],
        split=split[by_id],
        trains=(trains & (split == NO_SPLIT))[by_id],
        old=old[by_id],
        disputed=(conflict & (label == NO_LABEL))[by_id],
    )
    image = np.argsort(by_id)[copy_of]
    grouped = order[items.group[order] != 0]
    gone = np.flatnonzero(chosen[copy_of] != np.arange(len(items)))
    contradicts = (items.label[gone] != NO_LABEL) & (items.label[gone] != label[copy_of[gone]])
    claims = np.flatnonzero(conflict[copy_of] & ~unlabeled)
    return Collapsed(
        images,
        image[grouped],
        items.group[grouped],
        _duplicates(items, gone[~contradicts], chosen[copy_of[gone[~contradicts]]]),
        _conflicts(items, claims, chosen[copy_of[claims]]),
        _contradicted(items, images, image, gone[contradicts]),
    )


def _deciding(items: Items, rows: NDArray[np.int64]) -> int | None:
    """Find the copy that decides on the label of an image; None where the copies do not agree."""
    for is_brought in (True, False):
        for split in (TEST, VAL):
            inside = rows[(items.split[rows] == split) & (items.brought[rows] | (not is_brought))]
            if len(inside):
                return int(inside[0]) if len(np.unique(items.label[inside])) == 1 else None
    return None


def _duplicates(items: Items, rows: NDArray[np.int64], chosen: NDArray[np.int64]) -> pd.DataFrame:
    """Make the table of duplicates, sorted by `sample_id` and then as the source has them."""
    order = np.lexsort((rows, items.sample_id[rows]))
    rows, chosen = rows[order], chosen[order]
    columns = {
        "sample_id": hex_ids(items.sample_id[rows]),
        "source": items.sources(rows),
        "label": items.label_names(items.label[rows]),
        "split": split_names(items.split[rows]),
        "kept_id": hex_ids(items.sample_id[chosen]),
        "kept_source": items.sources(chosen),
    }
    return text_table(columns, DUPLICATE_COLUMNS)


def _conflicts(items: Items, rows: NDArray[np.int64], chosen: NDArray[np.int64]) -> pd.DataFrame:
    """Make the table of conflicts, sorted by all of its columns."""
    columns = {
        "sample_id": hex_ids(items.sample_id[chosen]),
        "label": items.label_names(items.label[rows]),
        "source": items.sources(rows),
        "split": split_names(items.frozen[chosen]),
    }
    return text_table(columns, CONFLICT_COLUMNS).sort_values(CONFLICT_COLUMNS, ignore_index=True)


def _contradicted(
    items: Items, images: Items, image: NDArray[np.int64], rows: NDArray[np.int64]
) -> list[Quarantined]:
    """Make a row of the quarantine for each copy under another label than the image's that is kept.

    `image` is the row in `images` that each item is a copy of.
    """
    claimed: dict[int, set[int]] = {number: set() for number in image[rows].tolist()}
    labelled = np.flatnonzero(np.isin(image, list(claimed)) & (items.label != NO_LABEL))
    for number, label in zip(image[labelled].tolist(), items.label[labelled].tolist(), strict=True):
        claimed[number].add(label)
    details = {}
    for number, labels in claimed.items():
        names = sorted(items.classes[label] for label in labels)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        label = images.label[number]
        how = "without a label" if label == NO_LABEL else f"as {items.classes[label]}"
        details[number] = (
            f"the same pixels under {', '.join(names[:_NAMED])}{more}; one of them goes on {how}"
        )
    return [
        Quarantined(path, "conflicting_labels", f"{details[number]}: {chosen}")
        for path, number, chosen in zip(
            items.sources(rows), image[rows].tolist(), images.sources(image[rows]), strict=True
        )
    ]


# --- tables and warnings -----------------------------------------------------------------------


def _left_out(images: Items, settled: Settled) -> Iterator[Quarantined]:
    """Make a row of the quarantine for each image that is left out."""
    refused = sorted(settled.refused, key=lambda row: row.image)
    paths = images.sources(np.array([row.image for row in refused], np.int64))
    others = [image for row in refused for image, _ in row.tied_to]
    named = dict(zip(others, images.sources(np.array(others, np.int64)), strict=True))
    for row, path in zip(refused, paths, strict=True):
        tied_to = " and ".join(f"{named[image]} in {SPLITS[split]}" for image, split in row.tied_to)
        yield Quarantined(path, row.reason, _TIED[row.how].format(tied_to))


def _warnings_of_splits(given: GivenSplits) -> Iterator[str]:
    if given.absent:
        yield f"{given.absent} rows of the frozen splits are for samples that are not in the source"
    if given.overruled:
        yield (
            f"{given.overruled} rows of the frozen splits name another split than the source brings: "
            "the source's is taken"
        )
    if given.unscored:
        yield (
            f"{given.unscored} files that the source puts in validation or test have no label: "
            "they are unlabeled, as nothing can be scored on them"
        )
    if given.unused_labels:
        yield f"{given.unused_labels} files have a label, but the source calls them unlabeled: it is not used"


def _warnings_of_ties(
    facts: dict[str, int],
    settled: Settled,
    ties: Ties,
    leaked: Literal["leave_out", "keep"],
    cut_short: bool,
) -> Iterator[str]:
    if facts["conflicts_for_review"]:
        yield (
            f"{facts['conflicts_for_review']} images stand under several labels: they are kept out of "
            "training until somebody decides in `make review`"
        )
    if facts["conflicts_frozen"]:
        yield (
            f"{facts['conflicts_frozen']} frozen samples are among them and have left their split: a "
            "reviewer's label brings them back to it"
        )
    leaks = {"near-duplicate pairs": settled.leaking_pairs, "groups": settled.leaking_groups}
    if any(leaks.values()):
        what = " and ".join(f"{count} {name}" for name, count in leaks.items() if count)
        done = "the images that leak are left out" if leaked == "leave_out" else "they leak, and are kept"
        yield f"{what} straddle splits that are given: {done}"
    if settled.old_ties:
        yield (
            f"{settled.old_ties} near-duplicate pairs or groups straddle splits as they are frozen: they "
            "stay, as old samples do not move"
        )
    bridges = sum(row.reason == "bridges_splits" for row in settled.refused)
    if bridges:
        yield f"{bridges} new images are tied to images of two splits and left out: they can be in neither"
    if cut_short:
        yield "there are too many near-duplicates to find all of them: raise the similarity"
    sizes = np.bincount(ties.sets(np.ones(ties.images, bool)), minlength=1)
    largest = int(sizes.max())
    if largest > max(_LARGE * ties.images, _MANY):
        yield (
            f"{largest} of {ties.images} images must stay together, over near-duplicates and groups: look "
            "whether the group column is the right one, and the similarity high enough"
        )
