"""Splits: brought, frozen, dealt."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from stages.dataset import bytes_id
from stages.errors import WinnowError
from stages.sources.splits import assign, deal, read_frozen, write_frozen


def ids(count: int, start: int = 0) -> list[str]:
    return [bytes_id(str(i).encode()) for i in range(start, start + count)]


def table(counts: dict[str, int], split: str | None = None) -> pd.DataFrame:
    labels = [name for name, count in counts.items() for _ in range(count)]
    return pd.DataFrame(
        {
            "sample_id": ids(len(labels)),
            "label": labels,
            "split": pd.Series([split] * len(labels), dtype=object),
        }
    )


def by_class(samples: pd.DataFrame, splits: dict[str, str]) -> Counter[tuple[str, str]]:
    return Counter(
        (label, splits[i]) for i, label in zip(samples["sample_id"], samples["label"], strict=True)
    )


def test_shares_hold_within_each_class() -> None:
    samples = table({"a": 100, "b": 40})
    counts = by_class(samples, deal(samples, [], 0.1, 0.2))
    assert counts == {
        ("a", "train"): 70, ("a", "val"): 10, ("a", "test"): 20,
        ("b", "train"): 28, ("b", "val"): 4, ("b", "test"): 8,
    }  # fmt: skip


def test_neither_order_nor_other_classes_matter() -> None:
    samples = table({"a": 50, "b": 50})
    whole = deal(samples, [], 0.1, 0.2)
    assert deal(samples.sample(frac=1, random_state=0), [], 0.1, 0.2) == whole
    alone = deal(samples[samples["label"] == "a"], [], 0.1, 0.2)
    assert alone == {key: whole[key] for key in alone}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, {"train": 1}), (2, {"train": 1, "test": 1}), (3, {"train": 1, "test": 1, "val": 1})],
)
def test_small_classes_train_first_then_test_then_validate(count: int, expected: dict[str, int]) -> None:
    assert Counter(deal(table({"a": count}), [], 0.1, 0.2).values()) == expected


def test_a_share_of_zero_makes_no_validation() -> None:
    assert "val" not in deal(table({"a": 30}), [], 0.0, 0.2).values()


def test_validation_is_dealt_out_of_train_where_the_source_brings_none() -> None:
    samples = table({"a": 40}, "train")
    samples.loc[:9, "split"] = "test"
    assigned = assign(samples, {})
    assert assigned.brought == {"train", "test"}
    splits = deal(samples.assign(split=assigned.splits), assigned.brought, 0.1, 0.2)
    assert Counter(splits.values()) == {"train": 27, "val": 3, "test": 10}
    assert {key for key, split in splits.items() if split == "test"} == set(samples["sample_id"][:10])


def test_a_complete_split_of_the_source_is_left_alone() -> None:
    samples = table({"a": 9}, "train")
    samples.loc[:2, "split"] = "test"
    samples.loc[3:5, "split"] = "val"
    assigned = assign(samples, {samples["sample_id"][0]: "train"})
    assert assigned.splits.tolist() == samples["split"].tolist()
    assert (assigned.frozen, assigned.overruled, assigned.absent) == (0, 1, 0)


def test_frozen_rows_are_taken_and_the_rest_dealt() -> None:
    samples = table({"a": 20})
    frozen = dict.fromkeys(samples["sample_id"][:10], "test") | dict.fromkeys(ids(3, start=500), "val")
    assigned = assign(samples, frozen)
    assert (assigned.frozen, assigned.absent) == (10, 3)
    splits = deal(samples.assign(split=assigned.splits), assigned.brought, 0.1, 0.2)
    assert all(splits[key] == "test" for key in samples["sample_id"][:10])
    assert Counter(splits[key] for key in samples["sample_id"][10:]) == {"train": 7, "test": 2, "val": 1}


def test_frozen_splits_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    splits = dict(zip(ids(3), ["train", "val", "test"], strict=True))
    write_frozen(path, splits)
    lines = path.read_text().splitlines()
    assert lines[0] == "sample_id,split"
    assert lines[1:] == sorted(lines[1:])
    assert read_frozen(path) == splits


def test_a_spreadsheets_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_bytes(b"\xef\xbb\xbfsample_id,split\r\n0123456789abcdef,val\r\n\r\n")
    assert read_frozen(path) == {"0123456789abcdef": "val"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: the header must be sample_id,split"),
        ("id,split\n", "line 1: the header"),
        ("sample_id,split\n0123456789abcdef\n", "line 2: 1 columns"),
        ("sample_id,split\n0123456789abcdef,val\n1.2E+15,val\n", "line 3: sample_id '1.2E+15'"),
        ("sample_id,split\n0123456789abcdef,dev\n", "line 2: split 'dev' is none of train, val, test"),
        (
            "sample_id,split\n0123456789abcdef,val\n0123456789abcdef,test\n",
            "line 3: 0123456789abcdef is in test",
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
