"""What the report counts, and how near-duplicates are found among what a scan found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.reading.found import SPLIT_CODE
from stages.reading.scan import Scan
from stages.samples.assemble import Samples
from stages.samples.near import Pairs, near_pairs
from stages.samples.resolve import Resolved
from stages.sources.base import Quarantined


def pair_finder(scanned: Scan, similarity: float | None) -> Callable[[NDArray[np.int64]], Pairs] | None:
    """Finds near-duplicates among rows of what was found; None where they are not looked for."""
    if similarity is None:
        return None
    found = scanned.found

    def find(rows: NDArray[np.int64]) -> Pairs:
        def thumbnails(index: NDArray[np.int64]) -> NDArray[np.uint8]:
            return scanned.thumbs.take(found.place[rows[index]])

        return near_pairs(found.perceptual[rows], found.flat[rows], thumbnails, similarity)

    return find


def summarise(
    samples: Samples, resolved: Resolved, refused: Sequence[Quarantined], files: int, truth: pd.DataFrame
) -> dict[str, Any]:
    """Counts of everything, as plain JSON values.

    Parameters
    ----------
    samples, truth : of `assemble.assemble`
    resolved : what became of the rest
    refused : all of the quarantine
    files : met in the source
    """
    return {
        "files": files,
        "images": len(samples),
        "splits": {name: int((samples.split == code).sum()) for name, code in SPLIT_CODE.items()},
        "classes": _by_class(samples),
        "splits_brought_by_source": sorted(resolved.brought),
        **resolved.facts,
        "quarantine": dict(sorted(Counter(row.reason for row in refused).items())),
        "planted": _planted_counts(truth),
    }


def quarantine_table(rows: Sequence[Quarantined]) -> pd.DataFrame:
    """The quarantine as a table, sorted by path."""
    ordered = sorted(rows, key=lambda row: (row.path, row.reason, row.detail))
    columns = {name: [getattr(row, name) for row in ordered] for name in ("path", "reason", "detail")}
    return pd.DataFrame(columns).astype("str")


def counts_of_all(samples: Samples) -> pd.DataFrame:
    """The counts of each class and split, and a row of those without a label."""
    unlabeled = int((samples.split == SPLIT_CODE["unlabeled"]).sum())
    row = pd.DataFrame({"class": [None], "split": ["unlabeled"], "count": [unlabeled]})
    return pd.concat([samples.counts(), row], ignore_index=True) if unlabeled else samples.counts()


def native_sizes(samples: Samples) -> pd.DataFrame:
    """`width`, `height` (pixels) and `count` of each native size."""
    found, at = samples.found, samples.position
    sides = found.width[at].astype(np.int64) << 32 | found.height[at].astype(np.int64)
    sizes, counts = np.unique(sides, return_counts=True)
    return pd.DataFrame({"width": sizes >> 32, "height": sizes & 0xFFFFFFFF, "count": counts})


def _by_class(samples: Samples) -> dict[str, dict[str, int]]:
    counts = samples.counts()
    table = counts.pivot(index="class", columns="split", values="count")
    return {
        name: {split: int(table.at[name, split]) for split in ("train", "val", "test")}
        for name in samples.classes
    }


def _planted_counts(truth: pd.DataFrame) -> dict[str, dict[str, int]] | None:
    if truth.empty:
        return None
    wrong = ~truth["removed"] & (truth["true_label"] != truth["given_label"])
    return {
        split: {
            "removed": int((truth["removed"] & (truth["split"] == split)).sum()),
            "wrong_labels": int((wrong & (truth["split"] == split)).sum()),
        }
        for split in ("train", "val")
    }
