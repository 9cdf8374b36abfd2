"""A comparison as text for the console."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from stages.reporting.figures import shorten
from stages.versions.comparison import Comparison
from stages.versions.summary import COUNTS, by_class, by_label, by_reason

_MOST_CLASSES = 20  # of a split
_MOST_REASONS = 20
_MOST_PAIRS = 8
_NAME = 20  # characters of a class
_REASON = 60
_IN_USE = (("A", "before"), ("B", "after"))
_KINDS = ("added", "removed", "dropped", "taken_back", "moved", "relabelled", "reweighted")


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
