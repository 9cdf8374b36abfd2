"""Exact duplicates: the same pixels more than once, whatever files they came in."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from stages.sources.base import Quarantined

# A duplicate of a test image in training would leak: the later use keeps the image.
_PRIORITY = {"train": 0, "val": 1, "test": 2}
_SPLIT = dict(enumerate(_PRIORITY))

DUPLICATE_COLUMNS = ["sample_id", "source", "label", "split", "kept_id", "kept_source"]


@dataclass(frozen=True)
class Collapsed:
    """What is left when every image stands there once.

    Attributes
    ----------
    kept : rows of `scan.Scan.found`, one for each image, sorted by `sample_id`
    duplicates : `DUPLICATE_COLUMNS`, a row for each item that gave way to another
    quarantine : items whose pixels stand under more than one label
    """

    kept: pd.DataFrame
    duplicates: pd.DataFrame
    quarantine: list[Quarantined]


def collapse(found: pd.DataFrame) -> Collapsed:
    """Keep one item of those with equal pixels: the smallest `sample_id`, then `source`.

    It takes the split of its duplicates that comes first in test, val, train. Where the
    duplicates' labels differ, none is kept.

    Parameters
    ----------
    found : `scan.Scan.found`, `split` filled where it is known and None elsewhere
    """
    ordered = found.sort_values(["sample_id", "source"], ignore_index=True)
    labels = ordered.groupby("pixel_key", sort=False)["label"]
    conflicting = labels.transform("nunique") > 1
    rest = ordered[~conflicting]
    first = rest.drop_duplicates("pixel_key").set_index("pixel_key")
    rank = rest["split"].map(_PRIORITY).groupby(rest["pixel_key"]).max().reindex(first.index)
    kept = first.assign(split=rank.map(_SPLIT).astype(object).where(rank.notna(), None)).reset_index()

    double = rest[rest.duplicated("pixel_key")]
    survivor = first.loc[double["pixel_key"], ["sample_id", "source"]]
    duplicates = double.assign(
        split=double["split"].astype("str"),
        kept_id=survivor["sample_id"].to_numpy(),
        kept_source=survivor["source"].to_numpy(),
    )[DUPLICATE_COLUMNS].astype({"kept_id": "str", "kept_source": "str"})
    return Collapsed(
        kept=kept[found.columns],
        duplicates=duplicates.reset_index(drop=True),
        quarantine=_conflicts(ordered[conflicting]),
    )


def _conflicts(rows: pd.DataFrame) -> list[Quarantined]:
    labels = rows.groupby("pixel_key")["label"].agg(lambda names: ", ".join(sorted(set(names))))
    return [
        Quarantined(source, "conflicting_labels", f"the same pixels under {labels[key]}")
        for source, key in zip(rows["source"], rows["pixel_key"], strict=True)
    ]
