"""Which samples differ between two versions of the dataset, and in what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.versions.version import Version, positions

# What can happen to a sample. What happened to one is named in this order, with + between.
KINDS = (
    "added",
    "removed",
    "dropped",
    "taken_back",
    "moved",
    "relabelled_at_ingest",
    "relabelled",
    "reweighted",
)
SIDES = ("before", "after")
_TEXTS = (("split",), ("label", "given_label"), ("action",), ("reason",), ("decided_by",))
_NUMBERS = ["weight", "given_weight"]
_ORDER = ["split", "label", "given_label", "action", "weight", "given_weight", "reason", "decided_by"]
CHANGE_COLUMNS = ["sample_id", "change", *(f"{name}_{side}" for name in _ORDER for side in SIDES), "source"]

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """Two versions and what differs between them.

    Attributes
    ----------
    before, after : the versions
    changes : `CHANGE_COLUMNS`, a row a changed sample: in the order of `after`, then what it lost
        in that of `before`. Text columns are categories, the same ones on both sides. What a
        version does not know (of a sample that it has not, of a decision without a ledger) is null.
    kinds : of each of `KINDS` which rows of `changes` it befell
    same_effect : samples in both that are used as before although the ledger's action, reason or
        decider is another; they are not in `changes`
    """

    before: Version
    after: Version
    changes: pd.DataFrame
    kinds: Mapping[str, Mask]
    same_effect: int

    @property
    def other_test_set(self) -> bool:
        """Whether the test split has other samples or labels: scores do not compare across it."""
        tested = [in_use(self.changes, side) & (self.changes[f"split_{side}"] == "test") for side in SIDES]
        relabelled = differs(self.changes, "label")
        return bool(((tested[0] != tested[1]) | (tested[0] & tested[1] & relabelled)).any())


def compare(before: Version, after: Version) -> Comparison:
    """Find what changed for whom; a sample is the same one as long as its `sample_id` is.

    - added, removed: in one version alone. One that is both new and dropped is added+dropped.
    - dropped, taken_back: the ledger leaves it out now, or no longer.
    - moved: into another split, by ingest or by a reviewer who labelled it.
    - relabelled_at_ingest: the given label is another.
    - relabelled: the label that it is used under is another, and not because of the given one alone.
    - reweighted: what it weighs in training is another, by the source or by the ledger.

    The last two are asked of samples that both versions use.
    """
    versions, rows = (before, after), _rows(before, after)
    texts: dict[str, list[pd.Categorical]] = {}
    for names in _TEXTS:
        texts |= _aligned(versions, rows, names)
    numbers = {
        name: [
            np.append(version.samples[name].to_numpy(np.float64), np.nan)[row]
            for version, row in zip(versions, rows, strict=True)
        ]
        for name in _NUMBERS
    }
    used = [np.append(version.in_use, False)[row] for version, row in zip(versions, rows, strict=True)]
    there = [row >= 0 for row in rows]
    kinds = _kinds(texts, numbers["weight"], used, there, before.has_splits and after.has_splits)

    code = np.zeros(len(there[0]), np.int16)
    for bit, kind in enumerate(KINDS):
        code |= kinds[kind].astype(np.int16) << bit
    changed = np.flatnonzero(code)
    columns: dict[str, object] = {
        "sample_id": _either(versions, [row[changed] for row in rows], "sample_id"),
        "change": _named(code[changed]),
        "source": _either(versions, [row[changed] for row in rows], "source"),
    }
    for side, name in enumerate(SIDES):
        columns |= {f"{text}_{name}": both[side][changed] for text, both in texts.items()}
        columns |= {f"{number}_{name}": both[side][changed] for number, both in numbers.items()}
    same_effect = 0
    if before.curated and after.curated:
        decided = [_unlike(texts[name]) for name in ("action", "reason", "decided_by")]
        same_effect = int((np.logical_or.reduce(decided) & (code == 0)).sum())
    return Comparison(
        before,
        after,
        pd.DataFrame(columns, columns=CHANGE_COLUMNS),
        {kind: mask[changed] for kind, mask in kinds.items()},
        same_effect,
    )


def in_use(changes: pd.DataFrame, side: str) -> Mask:
    """Of each changed sample whether that side's version has it and its ledger left it."""
    used: Mask = (
        changes[f"weight_{side}"].notna() & (changes[f"action_{side}"].astype("object") != "drop")
    ).to_numpy(bool)
    return used


def differs(changes: pd.DataFrame, name: str) -> Mask:
    """Of each changed sample whether a column of text is another after than before."""
    return _unlike([changes[f"{name}_{side}"].array for side in SIDES])


def _kinds(
    texts: Mapping[str, list[pd.Categorical]],
    weights: list[NDArray[np.float64]],
    used: list[Mask],
    there: list[Mask],
    splits_known: bool,
) -> dict[str, Mask]:
    both = there[0] & there[1]
    stays = used[0] & used[1]
    # Of a label that the ledger did not touch on either side, ingest alone can have changed it.
    labels, given = texts["label"], texts["given_label"]
    by_ledger = _unlike([labels[0], given[0]]) | _unlike([labels[1], given[1]])
    return {
        "added": ~there[0],
        "removed": ~there[1],
        "dropped": there[1] & ~used[1] & (used[0] | ~there[0]),
        "taken_back": both & ~used[0] & used[1],
        "moved": both & _unlike(texts["split"]) & splits_known,
        "relabelled_at_ingest": both & _unlike(given),
        "relabelled": stays & _unlike(labels) & by_ledger,
        "reweighted": stays & (weights[0] != weights[1]),
    }


def _unlike(sides: list[pd.Categorical]) -> Mask:
    """Where two columns of the same categories differ; null is like null."""
    return np.asarray(sides[0].codes != sides[1].codes)


def _rows(before: Version, after: Version) -> list[Rows]:
    """Where each sample of either version stands in both, -1 where it does not: the later's first."""
    in_before = positions(after.samples["sample_id"], before.samples["sample_id"])
    stayed = np.zeros(len(before.samples), bool)
    stayed[in_before[in_before >= 0]] = True
    lost = np.flatnonzero(~stayed)
    in_after = np.append(np.arange(len(after.samples)), np.full(len(lost), -1))
    return [np.append(in_before, lost), in_after]


def _aligned(
    versions: tuple[Version, Version], rows: list[Rows], names: tuple[str, ...]
) -> dict[str, list[pd.Categorical]]:
    """Columns of both versions, row by row and of one set of categories."""
    columns = [version.samples[name].array for version in versions for name in names]
    union = pd.api.types.union_categoricals(columns)
    codes = np.split(union.codes, np.cumsum([len(column) for column in columns])[:-1])
    taken = [
        pd.Categorical.from_codes(np.append(code, -1)[rows[place // len(names)]], union.categories)
        for place, code in enumerate(codes)
    ]
    return {name: [taken[place], taken[place + len(names)]] for place, name in enumerate(names)}


def _either(versions: tuple[Version, Version], rows: list[Rows], name: str) -> pd.Series:
    """A column as the later version has it; of what it lost (which comes last) as the earlier had it."""
    kept = rows[1] >= 0
    parts = [versions[1].samples[name].iloc[rows[1][kept]], versions[0].samples[name].iloc[rows[0][~kept]]]
    return pd.concat(parts, ignore_index=True)


def _named(code: NDArray[np.int16]) -> pd.Categorical:
    """Bits as the names of kinds, with + between."""
    found = np.flatnonzero(np.bincount(code, minlength=1))
    names = ["+".join(kind for bit, kind in enumerate(KINDS) if one >> bit & 1) for one in found.tolist()]
    return pd.Categorical.from_codes(np.searchsorted(found, code), names)
