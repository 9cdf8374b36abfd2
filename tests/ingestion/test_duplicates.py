"""Exact duplicates collapse; contradictory ones are kept out of training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
from item_rows import Row, frozen_of, items_of

from stages.dataset.base import CONFLICT_COLUMNS
from stages.dataset.ids import SPLITS
from stages.ingestion.items import NO_LABEL, NO_SPLIT
from stages.ingestion.resolve import DUPLICATE_COLUMNS, Collapsed, collapse
from stages.ingestion.splits import assign


def collapsed(*rows: Row, frozen: dict[int, str] | None = None) -> Collapsed:
    items, _ = assign(items_of(rows), frozen_of(frozen or {}))
    return collapse(items)


def splits(result: Collapsed) -> list[str | None]:
    return [None if code == NO_SPLIT else SPLITS[code] for code in result.images.split.tolist()]


def test_the_smallest_id_stays_with_the_split_that_protects_test() -> None:
    result = collapsed(
        Row(3, "x", "test", pixels=7), Row(1, "x", "train", pixels=7, source="one"), Row(2, "x", pixels=8)
    )
    assert result.images.sample_id.tolist() == [1, 2]
    assert result.images.place.tolist() == [1, 2]
    assert splits(result) == ["test", None]
    (row,) = result.duplicates.to_dict("records")
    assert row == {
        "sample_id": f"{3:016x}",
        "source": "3.png",
        "label": "x",
        "split": "test",
        "kept_id": f"{1:016x}",
        "kept_source": "one",
    }


def test_a_frozen_copy_outlives_smaller_ids() -> None:
    result = collapsed(Row(5, pixels=7), Row(9, pixels=7), frozen={9: "val"})
    assert result.images.sample_id.tolist() == [9]
    assert splits(result) == ["val"]
    assert result.images.old.tolist() == [True]


def test_a_copy_in_the_sources_test_split_moves_a_frozen_one() -> None:
    result = collapsed(Row(5, pixels=7), Row(9, split="test", pixels=7), frozen={5: "train"})
    assert result.images.sample_id.tolist() == [5]
    assert splits(result) == ["test"]
    assert result.images.old.tolist() == [False]


def test_what_the_source_calls_training_is_remembered() -> None:
    result = collapsed(Row(1, pixels=7), Row(2, split="train", pixels=7), Row(3), Row(4, split="test"))
    assert result.images.trains.tolist() == [True, False, False]
    assert splits(result) == [None, None, "test"]


def test_a_frozen_copy_closes_what_the_source_calls_training() -> None:
    result = collapsed(Row(1, split="train", pixels=7), Row(2, pixels=7), frozen={2: "val"})
    assert splits(result) == ["val"]
    assert result.images.trains.tolist() == [False]


def test_every_collapse_is_a_row_and_the_first_of_equal_files_stays() -> None:
    result = collapsed(*[Row(1, pixels=7, source=f"{name}.png") for name in "cab"], Row(2, pixels=7))
    assert result.images.place.tolist() == [0]
    assert result.duplicates["source"].tolist() == ["a.png", "b.png", "2.png"]
    assert set(result.duplicates["kept_source"]) == {"c.png"}


def test_a_copy_without_a_label_takes_the_others() -> None:
    result = collapsed(Row(1, None, pixels=7), Row(2, "b", pixels=7), Row(3, "a"), Row(4, None, pixels=9))
    assert result.images.sample_id.tolist() == [2, 3, 4]
    assert result.images.label.tolist() == [1, 0, NO_LABEL]
    assert splits(result) == [None, None, "unlabeled"]
    assert result.duplicates["label"].isna().tolist() == [True]
    assert result.conflicts.empty
    assert result.contradicted == []


def test_an_image_is_in_the_groups_of_all_its_copies() -> None:
    result = collapsed(
        Row(5, pixels=7, group=50),
        Row(6, pixels=7, group=60),
        Row(7, group=0),
        Row(8, "b", pixels=7, group=80),
    )
    assert sorted(zip(result.member.tolist(), result.group.tolist(), strict=True)) == [
        (0, 50),
        (0, 60),
        (0, 80),
    ]


def test_contradictory_labels_leave_one_image_without() -> None:
    result = collapsed(
        Row(2, "y", pixels=7),
        Row(1, "x", pixels=7),
        Row(3, "x", pixels=7),
        Row(4, None, pixels=7),
        Row(5, "y"),
    )
    assert result.images.sample_id.tolist() == [1, 5]
    assert result.images.label.tolist() == [NO_LABEL, 1]
    assert splits(result) == ["unlabeled", None]
    assert [(row.path, row.reason, row.detail) for row in result.contradicted] == [
        (
            "2.png",
            "conflicting_labels",
            "the same pixels under x, y; one of them goes on without a label: 1.png",
        ),
        (
            "3.png",
            "conflicting_labels",
            "the same pixels under x, y; one of them goes on without a label: 1.png",
        ),
    ]
    assert result.duplicates["source"].tolist() == ["4.png"]
    assert result.conflicts.drop(columns="split").to_numpy().tolist() == [
        [f"{1:016x}", "x", "1.png"],
        [f"{1:016x}", "x", "3.png"],
        [f"{1:016x}", "y", "2.png"],
    ]
    assert result.conflicts["split"].isna().all()


def test_a_file_listed_twice_under_two_labels() -> None:
    result = collapsed(Row(1, "x", source="a.png"), Row(1, "y", source="a.png"))
    assert splits(result) == ["unlabeled"]
    assert [row.path for row in result.contradicted] == ["a.png"]
    assert result.conflicts["label"].tolist() == ["x", "y"]


def test_the_sources_test_split_decides_between_labels() -> None:
    rows = Row(1, "x", "train", pixels=7), Row(2, "y", "test", pixels=7), Row(3, "y", "val", pixels=7)
    result = collapsed(*rows)
    assert result.images.sample_id.tolist() == [2]
    assert result.images.label.tolist() == [1]
    assert splits(result) == ["test"]
    assert [row.path for row in result.contradicted] == ["1.png"]
    assert result.contradicted[0].detail.endswith("one of them goes on as y: 2.png")
    assert result.duplicates["source"].tolist() == ["3.png"]
    assert len(result.conflicts) == 3

    result = collapsed(rows[0], rows[2], Row(4, "x", "test"))
    assert result.images.sample_id.tolist() == [3, 4]
    assert splits(result) == ["val", "test"]


def test_a_frozen_test_image_keeps_its_label_but_the_sources_split_comes_first() -> None:
    result = collapsed(Row(1, "x", pixels=7), Row(2, "y", pixels=7), frozen={2: "test"})
    assert (result.images.sample_id.tolist(), splits(result)) == ([2], ["test"])
    result = collapsed(Row(1, "x", "val", pixels=7), Row(2, "y", pixels=7), frozen={2: "test"})
    assert (result.images.sample_id.tolist(), splits(result)) == ([1], ["val"])


def test_two_labels_within_the_test_split_decide_nothing() -> None:
    result = collapsed(
        Row(1, "x", "test", pixels=7), Row(2, "y", "test", pixels=7), Row(3, "x", "val", pixels=7)
    )
    assert splits(result) == ["unlabeled"]
    assert [row.path for row in result.contradicted] == ["2.png", "3.png"]


def test_a_detail_names_few_of_many_labels() -> None:
    result = collapsed(*[Row(number, f"c{number}", pixels=7) for number in range(1, 9)])
    assert len(result.contradicted) == 7
    assert "under c1, c2, c3, c4, c5 and 3 more;" in result.contradicted[0].detail


def test_the_tables_keep_their_columns_and_types() -> None:
    empty, full = collapsed(Row(1)), collapsed(Row(1), Row(1), Row(2, "x", pixels=7), Row(3, "y", pixels=7))
    assert list(empty.duplicates.columns) == DUPLICATE_COLUMNS
    assert list(empty.conflicts.columns) == CONFLICT_COLUMNS
    assert empty.duplicates.dtypes.tolist() == full.duplicates.dtypes.tolist()
    assert empty.conflicts.dtypes.tolist() == full.conflicts.dtypes.tolist()
    assert (len(full.duplicates), len(full.conflicts)) == (1, 2)


def test_sources_are_found_in_every_chunk() -> None:
    items = items_of([Row(number) for number in range(1, 8)])
    chunks = [items.names.slice(start, count).chunk(0) for start, count in ((0, 2), (2, 1), (3, 4))]
    chunked = replace(items, names=pa.chunked_array(chunks))
    rows = np.array([6, 0, 2, 3, 1, 6])
    names = ["7.png", "1.png", "3.png", "4.png", "2.png", "7.png"]
    assert chunked.sources(rows) == items.sources(rows) == chunked.at(rows).sources() == names


def test_nothing_found() -> None:
    result = collapsed()
    assert len(result.images) == 0
    assert result.duplicates.empty
