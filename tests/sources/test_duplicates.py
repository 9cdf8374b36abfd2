"""Exact duplicates collapse; contradictory ones go to quarantine."""

from __future__ import annotations

import pandas as pd

from stages.sources.duplicates import DUPLICATE_COLUMNS, collapse
from stages.sources.scan import FOUND_DTYPES


def found(*rows: tuple[str, str, str, str | None]) -> pd.DataFrame:
    """Rows of id, pixels, label and split; the source is the position."""
    table = [(i, *row, f"{i}.png", 4, 4) for i, row in enumerate(rows)]
    return pd.DataFrame(table, columns=list(FOUND_DTYPES)).astype(FOUND_DTYPES)


def test_the_smallest_id_stays_with_the_split_that_protects_test() -> None:
    collapsed = collapse(found(("c", "p", "x", "test"), ("a", "p", "x", "train"), ("b", "q", "x", None)))
    kept = collapsed.kept.set_index("sample_id")
    assert kept.index.tolist() == ["a", "b"]
    assert kept.loc["a", "split"] == "test"
    assert kept.loc["a", "source"] == "1.png"
    assert pd.isna(kept.loc["b", "split"])
    (row,) = collapsed.duplicates.to_dict("records")
    assert row == {
        "sample_id": "c",
        "source": "0.png",
        "label": "x",
        "split": "test",
        "kept_id": "a",
        "kept_source": "1.png",
    }


def test_a_known_split_is_not_lost_to_an_open_one() -> None:
    collapsed = collapse(found(("b", "p", "x", "val"), ("a", "p", "x", None), ("c", "p", "x", "train")))
    assert collapsed.kept[["sample_id", "split"]].to_numpy().tolist() == [["a", "val"]]


def test_every_collapse_is_a_row() -> None:
    collapsed = collapse(found(*[("a", "p", "x", None)] * 3, ("b", "p", "x", None)))
    assert len(collapsed.kept) == 1
    assert collapsed.duplicates["source"].tolist() == ["1.png", "2.png", "3.png"]
    assert set(collapsed.duplicates["kept_source"]) == {"0.png"}


def test_conflicting_labels_are_all_refused() -> None:
    collapsed = collapse(
        found(("a", "p", "x", None), ("b", "p", "y", "test"), ("c", "p", "x", None), ("d", "q", "y", None))
    )
    assert collapsed.kept["sample_id"].tolist() == ["d"]
    assert [(row.source, row.reason) for row in collapsed.quarantine] == [
        ("0.png", "conflicting_labels"),
        ("1.png", "conflicting_labels"),
        ("2.png", "conflicting_labels"),
    ]
    assert "x, y" in collapsed.quarantine[0].detail
    assert collapsed.duplicates.empty


def test_without_duplicates_the_table_keeps_its_columns_and_types() -> None:
    collapsed = collapse(found(("a", "p", "x", None)))
    other = collapse(found(("a", "p", "x", None), ("b", "p", "x", None)))
    assert list(collapsed.duplicates.columns) == DUPLICATE_COLUMNS
    assert collapsed.duplicates.dtypes.tolist() == other.duplicates.dtypes.tolist()
