"""From what was found to samples: each image once, in one split, with nothing that leaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS, Split, hex_ids
from stages.images.near_duplicates import Pairs
from stages.ingestion.blocks import Found
from stages.ingestion.duplicates import Images, collapse, label_names, sources, split_names
from stages.ingestion.leakage import Settled, Ties, leave_out_unlabeled, near_duplicates, settle, tie
from stages.ingestion.source import Quarantined
from stages.ingestion.splits import UNLABELED, FrozenSplits, Known, assign, deal

NEAR_COLUMNS = ["sample_id", "source", "label", "split", "set", "nearest_id", "similarity", "outcome"]
_LARGE, _MANY = 0.05, 20  # a set of more than this share, and of more than so many images, is odd
_TIED = {
    "near": "a near-duplicate of {}",
    "grouped": "in one group with {}",
    "connected": "connected, over near-duplicates or groups, with {}",
}


@dataclass(frozen=True)
class Resolved:
    """The samples, as rows of `found.Found`, and what became of the other rows; arrays of M.

    Attributes
    ----------
    position : int64, row of `found.Found`; ascending by `sample_id`
    label : int32, `NO_LABEL` for unlabeled
    split : int8, index into `ids.SPLITS`
    group : uint64, the smallest `sample_id` of those that must not be separated; its own if alone
    brought : the splits that the source itself brings
    duplicates : `duplicates.DUPLICATE_COLUMNS`
    near_duplicates : `NEAR_COLUMNS`, a row for each image in a near-duplicate pair; `split` is null
        where it was left out before it had one
    conflicts : `dataset.CONFLICT_COLUMNS`
    quarantine : rows that became neither a sample nor a duplicate
    facts : counts of all this
    warnings : a line each
    """

    position: NDArray[np.int64]
    label: NDArray[np.int32]
    split: NDArray[np.int8]
    group: NDArray[np.uint64]
    brought: frozenset[Split]
    duplicates: pd.DataFrame
    near_duplicates: pd.DataFrame
    conflicts: pd.DataFrame
    quarantine: list[Quarantined]
    facts: dict[str, int]
    warnings: list[str]

    def __len__(self) -> int:
        return len(self.position)


def resolve(
    found: Found,
    frozen: FrozenSplits,
    find_pairs: Callable[[NDArray[np.int64]], Pairs] | None,
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
    found : what the scan found
    frozen : what people decided on the splits
    find_pairs : given the rows of images (int64, ascending by `sample_id`), finds the pairs of
        near-duplicates among them, as indices into those; None for not looking
    val_share, test_share : 0 to 1; for splits that the source does not bring
    leaked : what becomes of an image that is tied to one in a split that protects more
    """
    known = assign(found.sample_id, found.label, found.split, frozen)
    images = collapse(found, known)
    pairs = find_pairs(images.position) if find_pairs and len(images) else None
    ties = tie(len(images), pairs, images.member, images.group)
    settled = settle(images.split, images.trains, images.old, ties, known.splits_brought, leaked)
    before = settled.split.copy()
    settled.split = deal(
        images.sample_id,
        images.label,
        np.where(settled.left_out, np.int8(UNLABELED), settled.split),
        settled.unit,
        known.splits_brought,
        val_share,
        test_share,
    )
    settled.split[settled.left_out] = before[settled.left_out]
    if leaked == "leave_out":
        leave_out_unlabeled(settled, ties)

    stays = ~settled.left_out
    near = _near_table(found, images, settled, ties, pairs)
    facts = _facts(found, known, images, settled, near)
    facts["near_duplicate_sets_in_several_splits"] = _in_several_splits(settled, ties)
    return Resolved(
        position=images.position[stays],
        label=images.label[stays],
        split=settled.split[stays],
        group=images.sample_id[ties.sets(stays)[stays]],
        brought=known.splits_brought,
        duplicates=images.duplicates,
        near_duplicates=near,
        conflicts=images.conflicts,
        quarantine=[*images.quarantine, *_left_out(found, images, settled)],
        facts=facts,
        warnings=[
            *_warnings_of_splits(known),
            *_warnings_of_ties(facts, settled, ties, leaked, pairs is not None and pairs.cut_short),
        ],
    )


def _left_out(found: Found, images: Images, settled: Settled) -> Iterator[Quarantined]:
    """A row of the quarantine for each image that is left out."""
    refused = sorted(settled.refused, key=lambda row: row.image)
    paths = sources(found, images.position[np.array([row.image for row in refused], np.int64)])
    others = [image for row in refused for image, _ in row.beside]
    named = dict(zip(others, sources(found, images.position[np.array(others, np.int64)]), strict=True))
    for row, path in zip(refused, paths, strict=True):
        beside = " and ".join(f"{named[image]} in {SPLITS[split]}" for image, split in row.beside)
        yield Quarantined(path, row.reason, _TIED[row.how].format(beside))


def _near_table(
    found: Found, images: Images, settled: Settled, ties: Ties, pairs: Pairs | None
) -> pd.DataFrame:
    types = dict.fromkeys(NEAR_COLUMNS, "str") | {"set": "int64", "similarity": "float32"}
    if pairs is None:
        return pd.DataFrame(columns=NEAR_COLUMNS).astype(types)
    near = near_duplicates(settled, ties, pairs)
    table = {
        "sample_id": hex_ids(images.sample_id[near.image]),
        "source": sources(found, images.position[near.image]),
        "label": label_names(found, images.label[near.image]),
        "split": split_names(settled.split[near.image]),
        "set": near.number,
        "nearest_id": hex_ids(images.sample_id[near.nearest]),
        "similarity": near.similarity,
        "outcome": near.outcome,
    }
    return pd.DataFrame(table, columns=NEAR_COLUMNS).astype(types)


def _facts(
    found: Found, known: Known, images: Images, settled: Settled, near: pd.DataFrame
) -> dict[str, int]:
    return {
        "splits_frozen": int((images.old & ~settled.left_out).sum()),
        "splits_frozen_absent": known.absent,
        "splits_frozen_overruled": known.overruled,
        "duplicates": len(images.duplicates),
        "conflicts": images.conflicts["sample_id"].nunique(),
        "conflicts_for_review": int((images.disputed & ~settled.left_out).sum()),
        "conflicts_frozen": int((images.disputed & images.frozen).sum()),
        "near_duplicates": len(near),
        "near_duplicate_sets": near["set"].nunique(),
        "groups": len(np.unique(found.group[found.group != 0])),
        "joined": int(settled.joined.sum()),
        "left_out": int(settled.left_out.sum()),
        "leaking_pairs": settled.leaking_pairs,
        "leaking_groups": settled.leaking_groups,
    }


def _in_several_splits(settled: Settled, ties: Ties) -> int:
    """How many sets of near-duplicates are in more than one of train, val and test after all."""
    inside = settled.rank >= 0
    sets = ties.sets(inside, only_pairs=True)[inside]
    splits = np.zeros((ties.images, 3), np.bool_)
    splits[sets, settled.rank[inside]] = True
    return int((splits.sum(axis=1) > 1).sum())


def _warnings_of_splits(known: Known) -> Iterator[str]:
    if known.absent:
        yield f"{known.absent} rows of the frozen splits are for samples that are not in the source"
    if known.overruled:
        yield (
            f"{known.overruled} rows of the frozen splits name another split than the source brings: "
            "the source's is taken"
        )
    if known.unscored:
        yield (
            f"{known.unscored} files that the source puts in validation or test have no label: "
            "they are unlabeled, as nothing can be scored on them"
        )
    if known.unused_labels:
        yield f"{known.unused_labels} files have a label, but the source calls them unlabeled: it is not used"


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
