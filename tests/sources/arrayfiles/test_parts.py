"""Rows of arrays: labels, splits, groups and weights, each judged on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.errors import WinnowError
from stages.sources.arrayfiles.parts import Part, blocks_of, integer_classes, texts_of
from stages.sources.arrayfiles.stored import Stored
from stages.sources.base import Block


class Disk:
    """Puts arrays on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, values: Any) -> Stored:
        array = np.asarray(values)
        self._count += 1
        path = self._folder / str(self._count)
        path.write_bytes(array.tobytes())
        return Stored(str(path), 0, array.dtype.str, array.shape)

    def block(self, count: int, classes: list[str] | None = None, **columns: Any) -> Block:
        images = self(np.arange(count, dtype=np.uint8).reshape(count, 1, 1))
        columns = {"labels": np.zeros(count, int), **columns}
        part = Part("set", images, False, None, **{name: self(array) for name, array in columns.items()})
        (block,) = blocks_of([part], classes)
        assert [image[0, 0, 0] for image in block.payload.read()] == [int(at[4:]) for at in block.names]
        return block


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def refused(block: Block) -> list[tuple[str, str]]:
    return [(row.path, row.reason) for row in block.refused]


def test_integers_are_names_or_indices(disk: Disk) -> None:
    assert disk.block(3, labels=[5, -1, 0]).labels == ["5", None, "0"]
    assert disk.block(3, classes=["a", "b"], labels=[1, -1, 0]).labels == ["b", None, "a"]
    assert disk.block(2, labels=[True, False]).labels == ["1", "0"]
    assert disk.block(2, labels=np.array([[3], [4]])).labels == ["3", "4"]
    assert disk.block(1, labels=np.array([2**64 - 1], np.uint64)).labels == [str(2**64 - 1)]


@pytest.mark.parametrize("kind", ["U", "S"])
def test_bad_class_names_are_left_out(disk: Disk, kind: str) -> None:
    block = disk.block(5, labels=np.array(["a", "  ", "../..", "b\nc", ""], kind))
    assert (block.names, block.labels) == (["set#0", "set#4"], ["a", None])
    assert refused(block) == [(f"set#{row}", "bad_label") for row in (1, 2, 3)]


def test_text_that_is_none(disk: Disk) -> None:
    for raw in (
        np.array([0x61, 0x110000, 0xD800, 0x7FFFFFFF], "<u4").view("<U1"),
        np.array([b"a", b"\xff", b"\xc3", b"\x80"]),
    ):
        assert texts_of(raw) == ["a", None, None, None]
        block = disk.block(4, labels=raw)
        assert block.labels == ["a"]
        assert [reason for _, reason in refused(block)] == ["bad_label"] * 3
        assert refused(disk.block(4, groups=raw)) == [(f"set#{row}", "bad_row") for row in (1, 2, 3)]
        assert len(refused(disk.block(4, splits=raw))) == 4


def test_letters_of_several_code_points_are_composed(disk: Disk) -> None:
    assert disk.block(2, labels=["e\u0301", "\u00e9"]).labels == ["\u00e9"] * 2


def test_splits_of_rows(disk: Disk) -> None:
    block = disk.block(6, splits=["Train", "valid", "test", "unlabeled", "", "other"])
    assert block.splits == ["train", "val", "test", None, None]
    assert block.labels == ["0", "0", "0", None, "0"]
    assert refused(block) == [("set#5", "bad_row")]
    assert "'other'" in block.refused[0].detail


def test_without_a_label_the_split_stays_but_for_unlabeled(disk: Disk) -> None:
    block = disk.block(3, labels=[0, -1, 0], splits=["test", "test", "unlabeled"])
    assert block.splits == ["test", "test", None]
    assert block.labels[1:] == [None, None]


def test_groups(disk: Disk) -> None:
    assert disk.block(2, groups=["p1", ""]).groups == ["p1", None]
    assert disk.block(2, groups=[0, 12]).groups == ["0", "12"]


def test_weights(disk: Disk) -> None:
    block = disk.block(6, weights=[1, 0, 0.25, -1, np.nan, np.inf])
    assert block.weights == [1, 0, 0.25]
    assert refused(block) == [(f"set#{row}", "bad_row") for row in (3, 4, 5)]
    assert disk.block(1).weights == [1]


def test_a_row_is_refused_once(disk: Disk) -> None:
    block = disk.block(1, labels=["."], splits=["?"], weights=[-1.0])
    assert refused(block) == [("set#0", "bad_label")]
    assert (block.names, list(block.payload.read())) == ([], [])


def test_numbers_in_the_order_of_numbers(disk: Disk) -> None:
    many = np.arange(200_000) % 11 - 1
    assert integer_classes([disk(many), disk(np.array([30], np.uint8)), disk(["text"])]) == [
        *map(str, range(10)),
        "30",
    ]


def test_a_column_that_became_shorter(disk: Disk) -> None:
    column = disk(np.arange(4))
    Path(column.path).write_bytes(b"")
    with pytest.raises(WinnowError, match="changed"):
        integer_classes([column])
