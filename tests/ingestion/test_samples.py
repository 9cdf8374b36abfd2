"""Classes, order and planting; what the report counts; and when too many files are bad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from item_rows import Row, frozen_of, items_of

from stages.dataset.ids import hex_ids
from stages.errors import WinnowError
from stages.ingestion.items import SPLIT_CODE, Items
from stages.ingestion.resolve import Resolved, resolve
from stages.ingestion.samples import (
    assemble,
    quarantine_table,
    refuse_too_many,
    summarise,
)
from stages.ingestion.simulate import Planted, no_truth, plant
from stages.ingestion.source import Quarantined


def items(labels: Sequence[int], classes: Sequence[str], splits: Sequence[str] | None = None) -> Items:
    """One distinct image for each label; -1 for none."""
    count = len(labels)
    ids = np.array([(i * 0x9E3779B97F4A7C15) % 2**64 for i in range(1, count + 1)], np.uint64)
    return Items(
        place=np.arange(count),
        sample_id=ids,
        pixel_key=ids,
        perceptual=ids,
        flat=np.zeros(count, bool),
        label=np.array(labels, np.int32),
        split=np.array([-1 if splits is None else SPLIT_CODE[name] for name in splits or labels], np.int8),
        group=np.zeros(count, np.uint64),
        weight=np.ones(count, np.float32),
        width=np.full(count, 4, np.int32),
        height=np.full(count, 4, np.int32),
        names=pa.chunked_array([pa.array([f"{i}.png" for i in range(count)])]),
        classes=list(classes),
    )


def settled(table: Items) -> Resolved:
    return resolve(table, frozen_of({}), None, val_share=0.1, test_share=0.2, leaked="leave_out")


def put_together(table: Items) -> tuple[Items, pd.DataFrame, list[str]]:
    return assemble(settled(table).samples, None, "mine")


def test_rows_stand_by_class_then_id_unlabeled_last() -> None:
    samples, truth, warnings = put_together(items([1, 0, -1, 1, 0, 0, -1, 1, 1], ["a", "b"]))
    assert samples.label.tolist() == [0, 0, 0, 1, 1, 1, 1, -1, -1]
    for label in (0, 1, -1):
        ids = samples.sample_id[samples.label == label]
        assert (ids[:-1] < ids[1:]).all()
    assert truth.empty
    assert warnings == []


def test_classes_without_images_are_left_out_and_named() -> None:
    samples, _, warnings = put_together(items([0, 0, 3, 3, 3, 4], ["a", "b", "c", "d", "e"]))
    assert samples.classes == ["a", "d", "e"]
    assert set(samples.label.tolist()) == {0, 1, 2}
    assert warnings == [
        "2 classes ('b', 'c') have no usable image: left out",
        "class 'e' has one image: trained on, never tested",
    ]


def test_many_classes_make_one_warning() -> None:
    labels = [0, 0, *range(1, 10_000)]
    samples, _, warnings = put_together(items(labels, [f"c{i:05d}" for i in range(10_000)]))
    assert len(samples.classes) == 10_000
    assert len(warnings) == 2
    assert "validation" in warnings[1]
    assert warnings[0].startswith("9999 classes ('c00001', 'c00002', 'c00003', …) have one image")
    counts = samples.counts()
    assert counts["count"].sum() == len(labels)
    assert len(counts) == 30_000


@pytest.mark.parametrize(
    ("labels", "splits", "said"),
    [
        ([-1, -1], None, "no labelled image"),
        ([0, 0, 0], None, r"images of one class only \(a\)"),
        ([0, 1], None, "no image is left for the test split"),
        (
            [0, 0, 1],
            ["train", "test", "test"],
            "class 'b' has 1 images in mine, but none of them in training",
        ),
    ],
)
def test_what_cannot_be_trained_or_tested(labels: list[int], splits: list[str] | None, said: str) -> None:
    with pytest.raises(WinnowError, match=said):
        put_together(items(labels, ["a", "b"], splits))


def test_planting_leaves_unlabeled_and_test_as_they_are() -> None:
    table = items([i % 2 for i in range(100)] + [-1] * 5, ["a", "b"])
    plain, _, _ = put_together(table)

    def planter(samples: pd.DataFrame, classes: Sequence[str]) -> Planted:
        return plant(samples, classes, seed=0, label_noise=0.3, imbalance=2.0, max_per_class=20)

    samples, truth, _ = assemble(settled(table).samples, planter, "mine")
    assert (samples.label == -1).sum() == 5
    test = SPLIT_CODE["test"]
    before = dict(zip(plain.sample_id[plain.split == test], plain.label[plain.split == test], strict=True))
    after = dict(
        zip(samples.sample_id[samples.split == test], samples.label[samples.split == test], strict=True)
    )
    assert after == before
    given = truth[~truth["removed"]].set_index("sample_id")["given_label"]
    kept = pd.Series(np.array(samples.classes)[samples.label], index=hex_ids(samples.sample_id))
    assert (kept[given.index] == given).all()
    assert truth["removed"].sum() == len(plain) - len(samples)


def bad(count: int, reason: str = "damaged") -> list[Quarantined]:
    return [Quarantined(f"{reason}{i}.png", reason, "cut off") for i in range(count)]


def test_too_many_bad_files_name_the_commonest_reason() -> None:
    rows = [*bad(3, "too_large"), *bad(8)]
    with pytest.raises(
        WinnowError, match=r"11 of 100 files cannot be used, most often damaged \(8\)"
    ) as caught:
        refuse_too_many(rows, 100, 0.1, "mine")
    assert "damaged0.png: cut off" in str(caught.value)
    assert "ingest.max_quarantine" in str(caught.value)
    refuse_too_many(rows, 110, 0.1, "mine")


def test_sound_files_that_are_left_out_do_not_count() -> None:
    refuse_too_many([*bad(50, "leakage"), *bad(20, "conflicting_labels")], 100, 0.0, "mine")
    with pytest.raises(WinnowError, match="1 of 100"):
        refuse_too_many(bad(1), 100, 0.0, "mine")


def test_nothing_usable_is_an_error_whatever_is_allowed() -> None:
    with pytest.raises(WinnowError, match="none of its 5 files can be used"):
        refuse_too_many(bad(5), 5, 1.0, "mine")


def resolved_rows() -> Resolved:
    rows = [Row(i, "ab"[i % 2]) for i in range(1, 21)] + [Row(30, None), Row(31, None)]
    return settled(items_of(rows))


def test_everything_is_counted() -> None:
    resolved = resolved_rows()
    refused = [
        Quarantined("b", "damaged", "cut"),
        Quarantined("a", "too_large", ""),
        Quarantined("a", "damaged", ""),
    ]
    told = summarise(resolved.samples, resolved, refused, 25, no_truth())
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
