"""What `detect_noise` found and what `curate` did about it, from the summaries that they wrote.

A summary that is not there, or is of another shape, gives empty answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages.issue_kinds import KINDS, NAMES, PROTECTIONS

# What may stand behind a decision, in words.
_DECIDING: dict[str, str] = {
    **NAMES,
    "conflicting_labels": "conflicting labels",
    "unlabeled": "unlabelled",
    "review": "looked at by reviewers",
}
_SPLITS = ("train", "val", "test", "unlabeled")
_ACTIONS = {"drop": "dropped", "relabel": "relabelled", "reweight": "reweighted", "keep": "kept"}
_PLURALS = {"label_errors": "label_error", "outliers": "outlier", "near_duplicates": "near_duplicate"}
_MOST_NAMED = 20
_SURE = 0.05  # p-value under which the order of the files is said to tell something


def found_by_split(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Counts by kind of issue and split.

    Parameters
    ----------
    summary : `detect_noise/summary.json`: `splits` maps each split to `samples` and a count a kind,
        `checks` each kind to "on" or to why it is off. Splits may stand at the top, too.

    Returns
    -------
    `kind` in words, a column a split (null where the kind does not apply), and `all` where there are
    several; the first row counts samples. Kinds that are switched off have no row.
    """
    splits = _mapping(summary.get("splits", summary))
    counts = {
        name: {_PLURALS.get(kind, kind): n for kind, n in splits[name].items()}
        for name in _SPLITS
        if isinstance(splits.get(name), Mapping) and "samples" in splits[name]
    }
    checks = _mapping(summary.get("checks"))
    kinds = [
        kind
        for kind in KINDS
        if checks.get(kind, "on") == "on" and any(kind in row for row in counts.values())
    ]
    names = {"samples": "samples looked at"} | {kind: NAMES[kind] for kind in kinds}
    if not counts:
        return pd.DataFrame()
    table = pd.DataFrame({split: pd.Series(row).reindex(list(names)) for split, row in counts.items()})
    table = table.astype("Int64")
    if len(counts) > 1:
        table["all"] = table.sum(axis=1)
    table.insert(0, "kind", list(names.values()))
    return table.reset_index(drop=True)


def switched_off(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The checks that did not run, in words, each with the reason."""
    checks = _mapping(summary.get("checks"))
    return [(NAMES.get(kind, kind), str(said)) for kind, said in checks.items() if said != "on"]


def order_line(summary: Mapping[str, Any]) -> str:
    """A sentence where the order of the files tells something of the images; else nothing."""
    p = summary.get("non_iid")
    if not isinstance(p, int | float) or p >= _SURE:
        return ""
    return (
        f"Files that follow one another look alike (p = {p:.2g}): the images may come from series, and "
        "random splits may share them; give them a group, or freeze splits"
    )


def done_by_kind(summary: Mapping[str, Any]) -> pd.DataFrame:
    """What was done to training samples, by the kind of issue that decided.

    Parameters
    ----------
    summary : `curate/summary.json`; `kinds` maps each kind to counts by action

    Returns
    -------
    `decided by` in words, then `dropped`, `relabelled`, `reweighted`, `kept`.
    """
    kinds = {name: row for name, row in _mapping(summary.get("kinds")).items() if isinstance(row, Mapping)}
    rows = [
        {"decided by": words} | {title: int(kinds[kind].get(action, 0)) for action, title in _ACTIONS.items()}
        for kind, words in (_DECIDING | {name: name for name in kinds if name not in _DECIDING}).items()
        if kind in kinds
    ]
    return pd.DataFrame(rows)


def kept_for_review(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Why suspects were not touched, in words, and how many: what waits for a reviewer."""
    kept = [
        (f"in training, because {PROTECTIONS.get(name, name)}", int(count))
        for name, count in _mapping(summary.get("protection")).items()
        if count
    ]
    outside = _mapping(summary.get("outside_training"))
    return kept + [(f"suspected labels in {name}", int(count)) for name, count in outside.items() if count]


def rare_classes(summary: Mapping[str, Any]) -> str:
    """The classes that curation took for rare, the first of them by name."""
    names = summary.get("rare_classes")
    if not isinstance(names, list):
        return ""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(str(name) for name in names[:_MOST_NAMED]) + more


def _mapping(content: object) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}
