"""What the report counts."""

from __future__ import annotations

import pandas as pd
from found_rows import Row, found_of, frozen_of

from stages.ingestion.resolve import Resolved, resolve
from stages.ingestion.samples import (
    Samples,
    assemble,
    counts_of_all,
    native_sizes,
    quarantine_table,
    summarise,
)
from stages.ingestion.source import Quarantined


def settled() -> tuple[Samples, Resolved, pd.DataFrame]:
    rows = [Row(i, "ab"[i % 2]) for i in range(1, 21)] + [Row(30, None), Row(31, None)]
    found = found_of(rows)
    resolved = resolve(found, frozen_of({}), None, val_share=0.1, test_share=0.2, leaked="leave_out")
    samples, truth, _ = assemble(found, resolved, None, "mine")
    return samples, resolved, truth


def test_everything_is_counted() -> None:
    samples, resolved, truth = settled()
    refused = [
        Quarantined("b", "damaged", "cut"),
        Quarantined("a", "too_large", ""),
        Quarantined("a", "damaged", ""),
    ]
    told = summarise(samples, resolved, refused, 25, truth)
    assert told["files"] == 25
    assert told["images"] == 22
    assert told["splits"] == {"train": 14, "val": 2, "test": 4, "unlabeled": 2}
    assert told["classes"] == {name: {"train": 7, "val": 1, "test": 2} for name in "ab"}
    assert told["quarantine"] == {"damaged": 2, "too_large": 1}
    assert told["planted"] is None


def test_the_quarantine_is_sorted_by_path() -> None:
    rows = [
        Quarantined("b", "damaged", "x"),
        Quarantined("a", "too_large", "y"),
        Quarantined("a", "damaged", "z"),
    ]
    table = quarantine_table(rows)
    assert list(table.columns) == ["path", "reason", "detail"]
    assert table["detail"].tolist() == ["z", "y", "x"]
    assert list(quarantine_table([]).columns) == ["path", "reason", "detail"]


def test_samples_without_a_label_are_a_row_of_their_own() -> None:
    samples, _, _ = settled()
    counts = counts_of_all(samples)
    assert counts["count"].sum() == len(samples)
    last = counts.iloc[-1]
    assert (last["class"], last["split"], last["count"]) == (None, "unlabeled", 2)


def test_native_sizes_are_counted() -> None:
    samples, _, _ = settled()
    samples.found.width[:] = 70_000
    samples.found.width[samples.position[:3]] = 8
    samples.found.height[:] = 5
    table = native_sizes(samples)
    assert table.to_numpy().tolist() == [[8, 5, 3], [70_000, 5, 19]]
