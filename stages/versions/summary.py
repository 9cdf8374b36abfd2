"""A comparison in figures: by split and class, and by reason.

A comparison as text for the console.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS
from stages.errors import shorten
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
_MOST_CLASSES = 20  # of a split
_MOST_REASONS = 20
_MOST_PAIRS = 8
_NAME = 20  # characters of a class
_REASON = 60
_IN_USE = (("A", "before"), ("B", "after"))
_KINDS = ("added", "removed", "dropped", "taken_back", "moved", "relabelled", "reweighted")


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


def describe(comparison: Comparison, out: str | None = None) -> str:
    """All that a person wants at a glance; names and reasons are cut, and lose control characters.

    Parameters
    ----------
    comparison : of two versions
    out : where every changed sample can be looked up, for tables that are cut
    """
    more = f"all of them: {out}" if out else "all of them with --out FILE"
    parts = [
        _head(comparison),
        _class_table(comparison, more),
        _reason_table(comparison, more),
        _label_lines(comparison),
        _made_lines(comparison),
        _remarks(comparison),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(comparison: Comparison) -> str:
    lines = []
    for side, version in (("A", comparison.before), ("B", comparison.after)):
        total, dropped = len(version.samples), int((~version.in_use).sum())
        left = f", {dropped:,} of them dropped" if version.curated else ""
        lines.append(f"{side}  {version.name}: {_samples(total)}{left}")
        lines += [f"   note: {note}" for note in version.notes]
    changed = len(comparison.changes)
    lines += ["", f"{_samples(changed)} changed from A to B" if changed else "No sample differs"]
    return "\n".join(lines)


def _class_table(comparison: Comparison, more: str) -> str:
    """A line a split, and under it those of its classes in which something changed.

    Where what changed is not in use (another given label under the ledger's own one, a dropped
    sample in another split) a sentence says so.
    """
    if comparison.changes.empty:
        return ""
    table = by_class(comparison)
    table["changes"] = table[COUNTS[2:]].sum(axis=1)
    lines: list[tuple[str, pd.Series]] = []
    cut = 0
    for split, part in table.groupby("split", sort=False, dropna=False):
        lines.append((_name(split, "(no split)"), part[COUNTS].sum()))
        changed = part[part["changes"] > 0]
        shown = changed.nlargest(_MOST_CLASSES, "changes").sort_index()
        lines += [("  " + _name(row["class"], "(no label)"), row) for _, row in shown.iterrows()]
        cut += len(changed) - len(shown)
    happened = {title: [_flow(row, title) for _, row in lines] for title in _KINDS}
    if not any(cell for cells in happened.values() for cell in cells):
        return "What is in use is the same in A and B: samples, splits, labels and weights."
    columns = [
        ["", *(name for name, _ in lines)],
        *([f"in {side}", *(f"{row[name]:,}" for _, row in lines)] for side, name in _IN_USE),
        *([title.replace("_", " "), *cells] for title, cells in happened.items() if any(cells)),
    ]
    foot = [f"  … and {cut} more classes; {more}"] if cut else []
    return "\n".join(["Samples in use, and what happened to how many", _grid(columns), *foot])


def _reason_table(comparison: Comparison, more: str) -> str:
    """A line for each kind of change, reason and decider."""
    table = by_reason(comparison)
    if table.empty:
        return ""
    shown = table.head(_MOST_REASONS)
    columns = [
        ["change", *shown["change"].str.replace("_", " ")],
        ["decided by", *shown["decided_by"].replace("", "-")],
        ["samples", *(f"{count:,}" for count in shown["samples"])],
        ["reason", *(shorten(reason, _REASON) for reason in shown["reason"])],
    ]
    left = table["samples"].iloc[len(shown) :]
    foot = [f"  … and {left.sum():,} for {len(left)} more reasons; {more}"] if len(left) else []
    return "\n".join(["Why", _grid(columns, left=(0, 1, 3)), *foot])


def _label_lines(comparison: Comparison) -> str:
    """The labels that were changed into which, the most frequent first: those used, then given ones alone."""
    lines = []
    for title, given in (("Labels", False), ("Given labels, to no effect", True)):
        table = by_label(comparison, given=given)
        pairs = [
            f"{_name(row.before, '(no label)')} → {_name(row.after, '(no label)')} ({row.samples:,})"
            for row in table.head(_MOST_PAIRS).itertuples()
        ]
        more = [f"{len(table) - len(pairs)} more pairs"] if len(table) > len(pairs) else []
        lines += [f"{title}: {', '.join([*pairs, *more])}"] if pairs else []
    return "\n".join(lines)


def _made_lines(comparison: Comparison) -> str:
    """How many images augment and synthesize made, and where that differs by class."""
    lines = []
    before, after = comparison.before.made, comparison.after.made
    for delta in sorted({*before, *after}):
        counts = [f"{made[delta].sum():,}" if delta in made else "none" for made in (before, after)]
        line = f"{delta} images: {counts[0]} → {counts[1]}"
        if delta in before and delta in after:
            more = after[delta].sub(before[delta], fill_value=0).astype(int)
            more = more[more != 0].sort_values(key=abs, ascending=False, kind="stable")
            classes = [f"{_name(name, '')} {count:+,}" for name, count in more.head(_MOST_PAIRS).items()]
            classes += [f"{len(more) - _MOST_PAIRS} more classes"] if len(more) > _MOST_PAIRS else []
            line += f" ({', '.join(classes)})" if classes else ""
        lines.append(line)
    return "\n".join(lines)


def _remarks(comparison: Comparison) -> str:
    lines = []
    if comparison.other_test_set:
        lines.append("The test split is another one: scores on A's and on B's do not compare.")
    if comparison.same_effect:
        lines.append(
            f"{_samples(comparison.same_effect)} decided otherwise, or for another reason, to the same "
            "effect (not listed)."
        )
    return "\n".join(lines)


def _flow(row: pd.Series, kind: str) -> str:
    """How many changed in a way; where they come from one row and go to another `-2 +3`."""
    if kind in row:
        return f"{row[kind]:,}" if row[kind] else ""
    out, into = row[f"{kind}_out"], row[f"{kind}_in"]
    return " ".join([f"-{out:,}"] * bool(out) + [f"+{into:,}"] * bool(into))


def _grid(columns: Sequence[Sequence[str]], left: Iterable[int] = (0,)) -> str:
    """Columns side by side, those named flush left, and a rule under the header."""
    sides = ["<" if place in set(left) else ">" for place in range(len(columns))]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  "
        + "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
    rule = "  " + "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:])])


def _name(name: object, null: str) -> str:
    return null if pd.isna(name) else shorten(str(name), _NAME)


def _samples(count: int) -> str:
    return f"{count:,} sample{'' if count == 1 else 's'}"
