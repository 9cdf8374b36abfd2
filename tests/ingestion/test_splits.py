"""Dealing: shares within each class, what stays together, and what neither order nor others change.

Splits: brought and frozen.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from item_rows import Row, frozen_of, items_of
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS, hex_ids
from stages.errors import WinnowError
from stages.ingestion.items import NO_LABEL, NO_SPLIT, SPLIT_CODE, TEST, TRAIN, UNLABELED, VAL, Items
from stages.ingestion.splits import (
    GivenSplits,
    assign,
    deal,
    hash_order,
    read_frozen,
    write_frozen,
)


def ids(count: int) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.sha256(str(number).encode()).digest()[:8] for number in range(count))
    return np.sort(np.frombuffer(digests, ">u8").astype(np.uint64))


def labels_of(counts: Collection[int], seed: int = 0) -> NDArray[np.int32]:
    """So many images of each class, mixed."""
    labels = np.repeat(np.arange(len(counts)), list(counts)).astype(np.int32)
    return np.random.default_rng(seed).permutation(labels)


def dealt(
    labels: NDArray[np.int32],
    split: NDArray[np.int8] | None = None,
    unit: NDArray[np.int64] | None = None,
    brought: Collection[str] = (),
    shares: tuple[float, float] = (0.1, 0.2),
) -> NDArray[np.int8]:
    count = len(labels)
    start = np.full(count, NO_SPLIT, np.int8) if split is None else split
    return deal(ids(count), labels, start, np.arange(count) if unit is None else unit, brought, *shares)


def by_class(labels: NDArray[np.int32], splits: NDArray[np.int8]) -> dict[int, dict[str, int]]:
    return {
        label: dict(Counter(SPLITS[code] for code in splits[labels == label].tolist()))
        for label in np.unique(labels).tolist()
    }


def plain(
    counts: Collection[int], seed: int, brought: Collection[str], shares: tuple[float, float]
) -> list[str]:
    """The deal as it always was for single images without a split, class by class, in plain Python."""
    labels = labels_of(counts, seed)
    names = hex_ids(ids(len(labels)))
    val_share, test_share = shares
    each = {"test": 0.0 if "test" in brought else test_share, "val": 0.0 if "val" in brought else val_share}
    splits: dict[str, str] = {}
    for label in range(len(counts)):
        own = [name for name, other in zip(names, labels.tolist(), strict=True) if other == label]
        own.sort(key=lambda name: hashlib.sha256(f"split/{name}".encode()).digest())
        spare = len(own) - 1
        start = 0
        for split, share in each.items():
            least = 1 if share > 0 else 0
            count = max(0, min(max(round(share * len(own)), least), spare - start))
            splits.update(dict.fromkeys(own[start : start + count], split))
            start += count
        splits.update(dict.fromkeys(own[start:], "train"))
    return [splits[name] for name in names]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    seed=st.integers(0, 9),
    brought=st.sets(st.sampled_from(["train", "val", "test"])),
    shares=st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.4]), st.sampled_from([0.0, 0.2, 0.15, 0.5])),
)
def test_single_images_are_dealt_as_they_always_were(
    counts: list[int], seed: int, brought: set[str], shares: tuple[float, float]
) -> None:
    splits = dealt(labels_of(counts, seed), brought=brought, shares=shares)
    assert [SPLITS[code] for code in splits.tolist()] == plain(counts, seed, brought, shares)


def test_shares_hold_within_each_class() -> None:
    labels = labels_of([100, 40])
    assert by_class(labels, dealt(labels)) == {
        0: {"train": 70, "val": 10, "test": 20},
        1: {"train": 28, "val": 4, "test": 8},
    }


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, {"train": 1}), (2, {"train": 1, "test": 1}), (3, {"train": 1, "test": 1, "val": 1})],
)
def test_small_classes_train_first_then_test_then_validate(count: int, expected: dict[str, int]) -> None:
    assert by_class(labels_of([count]), dealt(labels_of([count])))[0] == expected


def test_a_share_of_zero_makes_no_validation() -> None:
    assert VAL not in dealt(labels_of([30]), shares=(0.0, 0.2))


def test_validation_is_dealt_out_of_train_where_the_source_brings_test() -> None:
    split = np.full(40, NO_SPLIT, np.int8)
    split[:10] = TEST
    splits = dealt(np.zeros(40, np.int32), split, brought={"train", "test"})
    assert Counter(splits.tolist()) == {TRAIN: 27, VAL: 3, TEST: 10}
    assert (splits[:10] == TEST).all()


def test_targets_count_what_is_frozen() -> None:
    split = np.full(20, NO_SPLIT, np.int8)
    split[:3] = TEST
    assert Counter(dealt(np.zeros(20, np.int32), split).tolist()) == {TRAIN: 14, VAL: 2, TEST: 4}
    split[:10] = TEST  # more than the share: they stay, and no more are added
    assert Counter(dealt(np.zeros(20, np.int32), split).tolist()) == {TRAIN: 8, VAL: 2, TEST: 10}


def test_unlabeled_images_take_no_part() -> None:
    labels = np.array([0, NO_LABEL, 0, 0, NO_LABEL], np.int32)
    split = np.where(labels == NO_LABEL, UNLABELED, NO_SPLIT).astype(np.int8)
    splits = dealt(labels, split)
    assert splits[[1, 4]].tolist() == [UNLABELED, UNLABELED]
    assert sorted(splits[[0, 2, 3]].tolist()) == [TRAIN, VAL, TEST]
    assert dealt(labels[[1, 4]], split[[1, 4]]).tolist() == [UNLABELED, UNLABELED]


def test_nothing_to_deal() -> None:
    assert dealt(np.zeros(0, np.int32)).tolist() == []


def test_units_stay_whole_and_shares_come_near() -> None:
    labels = labels_of([400, 200], seed=1)
    unit = np.arange(600) // 5 * 5
    splits = dealt(labels, unit=unit)
    assert (splits == splits[unit]).all()
    for label, count in ((0, 400), (1, 200)):
        share = np.bincount(splits[labels == label], minlength=3) / count
        assert share == pytest.approx([0.7, 0.1, 0.2], abs=0.03)


def test_singles_fill_what_units_leave() -> None:
    unit = np.arange(100)
    unit[:60] = unit[:60] // 30 * 30  # two units of 30, which fit into training alone
    splits = dealt(np.zeros(100, np.int32), unit=unit)
    assert (splits[:60] == TRAIN).all()
    assert Counter(splits.tolist()) == {TRAIN: 70, VAL: 10, TEST: 20}


def test_large_units_go_first() -> None:
    unit = np.array([0] * 14 + [14, 14, 16, 16, 18, 18])
    assert Counter(dealt(np.zeros(20, np.int32), unit=unit).tolist()) == {TRAIN: 14, VAL: 2, TEST: 4}


def test_a_class_in_one_unit_is_trained_on() -> None:
    labels = np.repeat(np.arange(3), 4).astype(np.int32)
    unit = np.arange(12) // 4 * 4
    assert (dealt(labels, unit=unit, shares=(0.4, 0.5)) == TRAIN).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 80),
    shares=st.tuples(st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.0, 0.2, 0.6])),
    brought=st.sets(st.sampled_from(["val", "test"])),
)
def test_whatever_is_dealt(seed: int, count: int, shares: tuple[float, float], brought: set[str]) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count).astype(np.int32)
    start = rng.choice([NO_SPLIT, NO_SPLIT, NO_SPLIT, TRAIN, VAL, TEST], count).astype(np.int8)
    number = rng.integers(0, count, count)
    is_open = start == NO_SPLIT
    unit = np.arange(count)
    for name in np.unique(number[is_open]):
        members = np.flatnonzero(is_open & (number == name))
        unit[members] = members[0]
    splits = dealt(labels, start, unit, brought, shares)

    assert set(splits.tolist()) <= {TRAIN, VAL, TEST}
    assert (splits[~is_open] == start[~is_open]).all()
    assert (splits[is_open] == splits[unit[is_open]]).all()
    for name in brought:
        assert not (splits[is_open] == SPLIT_CODE[name]).any()
    for label in np.unique(labels[is_open]).tolist():
        assert (splits[labels == label] == TRAIN).any()


def known(rows: list[Row], frozen: dict[int, str] | None = None) -> tuple[Items, GivenSplits]:
    return assign(items_of(rows), frozen_of(frozen or {}))


def names(splits: np.ndarray) -> list[str | None]:
    return [None if code == NO_SPLIT else SPLITS[code] for code in splits.tolist()]


def test_training_stays_open_where_validation_or_test_is_missing() -> None:
    items, given = known([Row(1, split="train"), Row(2, split="test"), Row(3)])
    assert given.brought == {"train", "test"}
    assert names(items.split) == [None, "test", None]
    assert items.trains.tolist() == [True, False, False]


def test_a_complete_split_of_the_source_outranks_the_frozen_one() -> None:
    items, given = known(
        [Row(1, split="test"), Row(2, split="val"), Row(3, split="train")], {1: "train", 2: "val"}
    )
    assert names(items.split) == ["test", "val", "train"]
    assert (given.overruled, given.absent) == (1, 0)
    assert not items.trains.any()


def test_what_is_frozen_for_testing_is_not_trained_on_when_the_source_comes_to_bring_a_test_split() -> None:
    rows = [Row(1, split="train"), Row(2, split="train"), Row(3, split="val"), Row(4, split="test")]
    assert names(known(rows, {1: "test", 2: "train"})[0].split) == ["test", "train", "val", "test"]


def test_frozen_rows_decide_what_the_source_leaves_open() -> None:
    items, given = known(
        [Row(1), Row(2, split="train"), Row(3), Row(1)], {1: "test", 2: "val", 8: "val", 9: "val"}
    )
    assert names(items.split) == ["test", "val", None, "test"]
    assert (given.overruled, given.absent) == (0, 2)
    assert items.brought.tolist() == [False] * 4
    assert names(items.frozen) == ["test", "val", None, "test"]


def test_what_has_no_label_is_unlabeled_whatever_is_said() -> None:
    rows = [Row(1, None), Row(2, None, "test"), Row(3, None, "train"), Row(4, "a", "unlabeled"), Row(5)]
    items, given = known(rows, {1: "test"})
    assert names(items.split) == ["unlabeled"] * 4 + [None]
    assert items.label.tolist() == [NO_LABEL] * 4 + [0]
    assert given.brought == set()  # a test split without labels is none
    assert (given.unscored, given.unused_labels) == (1, 1)
    assert given.absent == 0


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
