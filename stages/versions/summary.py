"""A comparison in figures: by split and class, and by reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.ids import SPLITS
from stages.versions.comparison import KINDS, SIDES, Comparison, Mask, differs, in_use
from stages.versions.version import Version

COUNTS = [
    "before",
    "after",
    "added",
    "removed",
    "dropped",
    "taken_back",
    "moved_out",
    "moved_in",
    "relabelled_out",
    "relabelled_in",
    "reweighted",
]
_AT_INGEST = ("added", "removed", "relabelled_at_ingest")


def by_class(comparison: Comparison) -> pd.DataFrame:
    """How many samples of each split and class are in use, and how many changed in which way.

    A row for each split and class, splits in their own order, classes by name; null where there is
    no label. Columns `split`, `class` and `COUNTS`: `before` and `after` are what is in use (what a
    ledger drops is not). A sample that is moved or relabelled leaves one row and enters another;
    `relabelled` means the label that is used, whoever changed it. What changed in two ways is counted
    in both. A sample that leaves is counted under its old label, any other under its new one.
    """
    changes, kinds = comparison.changes, comparison.kinds
    stays = in_use(changes, "before") & in_use(changes, "after")
    moved, relabelled = stays & kinds["moved"], stays & differs(changes, "label")
    new = kinds["dropped"] & kinds["added"]
    cells = {
        "before": _cells(comparison.before),
        "after": _cells(comparison.after),
        "added": _changed(changes, "after", kinds["added"]),
        "removed": _changed(changes, "before", kinds["removed"]),
        "dropped": _changed(changes, "before", kinds["dropped"] & ~new).add(
            _changed(changes, "after", new), fill_value=0
        ),
        "taken_back": _changed(changes, "after", kinds["taken_back"]),
        "moved_out": _changed(changes, "before", moved),
        "moved_in": _changed(changes, "after", moved),
        "relabelled_out": _changed(changes, "before", relabelled),
        "relabelled_in": _changed(changes, "after", relabelled),
        "reweighted": _changed(changes, "after", kinds["reweighted"]),
    }
    table = pd.DataFrame(cells, columns=COUNTS).fillna(0).astype("int64")
    table = table.rename_axis(["split", "class"]).reset_index()
    table = table.astype({"split": "object", "class": "object"})
    place = table["split"].map({name: place for place, name in enumerate(SPLITS)})
    table = table.assign(place=place).sort_values(["place", "split", "class"])
    return table.drop(columns="place").reset_index(drop=True)


def by_reason(comparison: Comparison) -> pd.DataFrame:
    """How many samples changed in which way, and why.

    Columns `change` (one of `KINDS`, in their order), `reason`, `decided_by` (`ingest`, `policy` or
    `reviewer`) and `samples`, the most frequent reason first. The reason is the later ledger's, or,
    where it has none any more, "no longer" the earlier one's; of a sample that moved it is from where
    to where. What reviewers decided is one reason, as they write notes and not reasons.
    """
    reason, decider = _why(comparison.changes)
    parts = []
    for kind in KINDS:
        rows = comparison.kinds[kind]
        why, who = reason[rows], decider[rows]
        ingested = _by_ingest(comparison.changes, kind)[rows]
        why[ingested], who[ingested] = "", "ingest"
        if kind == "moved":
            splits = [_texts(comparison.changes, f"split_{side}")[rows] for side in SIDES]
            why = splits[0] + " → " + splits[1]
        counted = pd.DataFrame({"reason": why, "decided_by": who}).value_counts(sort=False)
        counted = counted.rename("samples").reset_index()
        counted = counted.sort_values(["samples", "reason", "decided_by"], ascending=[False, True, True])
        parts.append(counted.assign(change=kind))
    return pd.concat(parts, ignore_index=True)[["change", "reason", "decided_by", "samples"]]


def by_label(comparison: Comparison, *, given: bool = False) -> pd.DataFrame:
    """Columns `before`, `after` and `samples`: of what both versions use, the labels that changed.

    The most frequent first; null is no label. With `given` it is the given labels that changed to no
    effect: the later version does not use the sample, or under the same label as the earlier.
    """
    changes = comparison.changes
    relabelled = in_use(changes, "after") & differs(changes, "label")
    if given:
        name, rows = "given_label", comparison.kinds["relabelled_at_ingest"] & ~relabelled
    else:
        name, rows = "label", in_use(changes, "before") & relabelled
    pairs = pd.DataFrame({side: _texts(changes, f"{name}_{side}", None)[rows] for side in SIDES})
    counted = pairs.value_counts(sort=False, dropna=False).rename("samples").reset_index()
    order = ["samples", *SIDES]
    return counted.sort_values(order, ascending=[False, True, True]).reset_index(drop=True)


def _cells(version: Version) -> pd.Series:
    """Samples in use of each split and class."""
    used = version.samples.loc[version.in_use, ["split", "label"]]
    return used.groupby(["split", "label"], observed=True, dropna=False).size()


def _changed(changes: pd.DataFrame, side: str, rows: Mask) -> pd.Series:
    """Some of the changed samples by the split and class of one side."""
    names = [f"split_{side}", f"label_{side}"]
    counted = changes.loc[rows, names].groupby(names, observed=True, dropna=False).size()
    return counted.rename_axis(["split", "label"])


def _why(changes: pd.DataFrame) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Reason and decider of each change, were it the ledger's."""
    reasons, deciders = [], []
    for side in SIDES:
        deciders.append(_texts(changes, f"decided_by_{side}"))
        reasons.append(np.where(deciders[-1] == "reviewer", "reviewed", _texts(changes, f"reason_{side}")))
    gone = (reasons[1] == "") & (reasons[0] != "")
    reason = np.where(gone, "no longer " + reasons[0], reasons[1])
    return reason, np.where(gone, deciders[0], deciders[1])


def _by_ingest(changes: pd.DataFrame, kind: str) -> Mask:
    """Of each changed sample whether it is ingest, not the ledger, that a change of this kind is from."""
    if kind == "reweighted":
        return np.asarray(changes["given_weight_before"] != changes["given_weight_after"])
    if kind == "moved":  # only a label from a reviewer moves a sample, from where the unlabelled are
        return ~np.logical_or.reduce(
            [
                (_texts(changes, f"split_{one}") == "unlabeled")
                & (_texts(changes, f"decided_by_{other}") == "reviewer")
                for one, other in (("before", "after"), ("after", "before"))
            ]
        )
    return np.full(len(changes), kind in _AT_INGEST)


def _texts(changes: pd.DataFrame, name: str, null: str | None = "") -> NDArray[np.object_]:
    column = changes[name].array
    texts: NDArray[np.object_] = np.array([*column.categories, null], object)[column.codes]
    return texts
