"""Splits: brought and frozen."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from found_rows import Row, found_of, frozen_of

from stages.errors import WinnowError
from stages.ids import SPLITS, hex_ids
from stages.reading.found import NO_LABEL, NO_SPLIT
from stages.samples.splits import (
    TEST,
    TRAIN,
    UNLABELED,
    VAL,
    Known,
    assign,
    hash_order,
    read_frozen,
    write_frozen,
)


def known(rows: list[Row], frozen: dict[int, str] | None = None) -> Known:
    found = found_of(rows)
    return assign(found.sample_id, found.label, found.split, frozen_of(frozen or {}))


def names(splits: np.ndarray) -> list[str | None]:
    return [None if code == NO_SPLIT else SPLITS[code] for code in splits.tolist()]


def test_training_stays_open_where_validation_or_test_is_missing() -> None:
    there = known([Row(1, split="train"), Row(2, split="test"), Row(3)])
    assert there.splits_brought == {"train", "test"}
    assert names(there.split) == [None, "test", None]
    assert there.trains.tolist() == [True, False, False]


def test_a_complete_split_of_the_source_outranks_the_frozen_one() -> None:
    there = known([Row(1, split="test"), Row(2, split="val"), Row(3, split="train")], {1: "train", 2: "val"})
    assert names(there.split) == ["test", "val", "train"]
    assert (there.overruled, there.absent) == (1, 0)
    assert not there.trains.any()


def test_what_is_frozen_for_testing_is_not_trained_on_when_the_source_comes_to_bring_a_test_split() -> None:
    rows = [Row(1, split="train"), Row(2, split="train"), Row(3, split="val"), Row(4, split="test")]
    assert names(known(rows, {1: "test", 2: "train"}).split) == ["test", "train", "val", "test"]


def test_frozen_rows_decide_what_the_source_leaves_open() -> None:
    there = known([Row(1), Row(2, split="train"), Row(3), Row(1)], {1: "test", 2: "val", 8: "val", 9: "val"})
    assert names(there.split) == ["test", "val", None, "test"]
    assert (there.overruled, there.absent) == (0, 2)
    assert there.brought.tolist() == [False] * 4
    assert names(there.frozen) == ["test", "val", None, "test"]


def test_what_has_no_label_is_unlabeled_whatever_is_said() -> None:
    rows = [Row(1, None), Row(2, None, "test"), Row(3, None, "train"), Row(4, "a", "unlabeled"), Row(5)]
    there = known(rows, {1: "test"})
    assert names(there.split) == ["unlabeled"] * 4 + [None]
    assert there.label.tolist() == [NO_LABEL] * 4 + [0]
    assert there.splits_brought == set()  # a test split without labels is none
    assert (there.unscored, there.unused_labels) == (1, 1)
    assert there.absent == 0


def test_hash_order_depends_on_purpose_and_id_alone() -> None:
    order = hash_order(["a", "b", "c", "d", "e"], "x")
    assert hash_order(["e", "d", "c", "b", "a"], "x") == order
    assert hash_order(["a", "c", "e"], "x") == [name for name in order if name in "ace"]
    assert hash_order(["a", "b", "c", "d", "e"], "y") != order


def test_frozen_splits_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    ids = np.random.default_rng(0).integers(0, 2**64, 200_000, np.uint64, endpoint=False)
    splits = (ids % np.uint64(4)).astype(np.int8)  # a quarter each, also unlabeled
    count = write_frozen(path, ids, splits)
    lines = path.read_text().splitlines()
    assert lines[0] == "sample_id,split"
    assert lines[1:] == sorted(lines[1:])
    assert len(lines) - 1 == count == (splits != UNLABELED).sum()
    frozen = read_frozen(path)
    assert len(frozen) == count
    expected = np.where(splits == UNLABELED, np.int8(NO_SPLIT), splits)
    assert np.array_equal(frozen.lookup(ids), expected)


def test_a_sample_is_frozen_once(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    assert write_frozen(path, np.array([2, 1, 2], np.uint64), np.array([VAL, TRAIN, VAL], np.int8)) == 2
    assert (
        path.read_text() == f"sample_id,split\n{hex_ids(np.array([1], np.uint64))[0]},train\n{2:016x},val\n"
    )


def test_looking_up_what_is_not_there(tmp_path: Path) -> None:
    ids = np.array([0, 5, 2**64 - 1], np.uint64)
    assert frozen_of({}).lookup(ids).tolist() == [NO_SPLIT] * 3
    assert frozen_of({5: "test"}).lookup(ids).tolist() == [NO_SPLIT, TEST, NO_SPLIT]
    path = tmp_path / "splits.csv"
    path.write_text("sample_id,split\n")
    assert len(read_frozen(path)) == 0


def test_a_spreadsheets_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_bytes(b"\xef\xbb\xbfsample_id,split\r\n0123456789abcdef,val\r\n\r\n0123456789abcdef,val\r\n")
    frozen = read_frozen(path)
    assert hex_ids(frozen.sample_id) == ["0123456789abcdef"]
    assert frozen.split.tolist() == [VAL]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: the header must be sample_id,split"),
        ("id,split\n", "line 1: the header"),
        ("sample_id,split\n0123456789abcdef\n", "line 2: 1 columns"),
        ("sample_id,split\n0123456789abcdef,val\n1.2E+15,val\n", "line 3: sample_id '1.2E+15'"),
        ("sample_id,split\n0123456789abcdef,dev\n", "line 2: split 'dev' is none of train, val, test"),
        (
            "sample_id,split\n0123456789abcdef,val\n0000000000000000,val\n0123456789abcdef,test\n",
            "line 4: 0123456789abcdef is in test, and in val further up",
        ),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(content)
    with pytest.raises(WinnowError, match=re.escape(said)):
        read_frozen(path)


def test_frozen_splits_that_are_no_text_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="is not there"):
        read_frozen(tmp_path / "splits.csv")
    (tmp_path / "splits.csv").write_bytes(b"sample_id,split\n\xff\xfe\n")
    with pytest.raises(WinnowError, match="not a CSV file"):
        read_frozen(tmp_path / "splits.csv")
