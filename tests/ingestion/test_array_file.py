"""Rows of arrays: labels, splits, groups and weights, each judged on its own.

Arrays on disk: how images are read from them, and what they may unpack to.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.errors import UnusableError, WinnowError
from stages.images.decode import decode
from stages.ingestion import array_file
from stages.ingestion.array_file import (
    ArrayPayload,
    DiskArray,
    LabelledImages,
    blocks_of,
    channels_first_of,
    check_size,
    eight_bits,
    integer_classes,
    pixel_notes,
    require_room,
    texts_of,
    unpack,
)
from stages.ingestion.source import Block


class Disk:
    """Puts arrays on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, values: Any) -> DiskArray:
        array = np.asarray(values)
        self._count += 1
        path = self._folder / str(self._count)
        path.write_bytes(array.tobytes())
        return DiskArray(str(path), 0, array.dtype.str, array.shape)

    def block(self, count: int, classes: list[str] | None = None, **columns: Any) -> Block:
        images = self(np.arange(count, dtype=np.uint8).reshape(count, 1, 1))
        columns = {"labels": np.zeros(count, int), **columns}
        part = LabelledImages(
            "set", images, False, None, **{name: self(array) for name, array in columns.items()}
        )
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


def on_disk(folder: Path, array: np.ndarray, offset: int = 16) -> DiskArray:
    path = folder / "array"
    path.write_bytes(bytes(offset) + array.tobytes())
    return DiskArray(str(path), offset, array.dtype.str, array.shape)


def random(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 1), (5, 4, 3, 3)])
def test_rows_are_read_as_they_are(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = random(*shape)
    payload = pickle.loads(pickle.dumps(ArrayPayload(on_disk(tmp_path, images), range(1, 5))))  # noqa: S301
    found = list(payload.read())
    assert len(payload) == len(found) == 4
    for image, row in zip(found, images[1:], strict=True):
        assert image.dtype == np.uint8
        assert (image == row.reshape(4, 3, -1)).all()
        assert image.flags.c_contiguous


def test_some_rows_only(tmp_path: Path) -> None:
    images = random(9, 4, 3)
    found = list(ArrayPayload(on_disk(tmp_path, images), [7, 0, 3]).read())
    assert (np.stack(found)[..., 0] == images[[7, 0, 3]]).all()


def test_channels_first(tmp_path: Path) -> None:
    images = random(2, 3, 8, 9)
    found = list(ArrayPayload(on_disk(tmp_path, images), range(2), channels_first=True).read())
    assert (np.stack(found) == images.transpose(0, 2, 3, 1)).all()


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    array = on_disk(tmp_path, random(3, 4, 3))
    payload = ArrayPayload(array, range(3))
    path = Path(array.path)
    path.write_bytes(path.read_bytes()[:-1])
    *whole, last = payload.read()
    assert len(whole) == 2
    assert isinstance(last, UnusableError)
    assert last.reason == "damaged"
    path.unlink()
    lost = list(payload.read())
    assert [item.reason for item in lost if isinstance(item, UnusableError)] == ["unreadable"] * 3
    assert str(tmp_path) not in lost[0].detail


def test_truth_values_are_black_and_white() -> None:
    raw = np.array([[0, 1], [2, 255]], np.uint8).view(np.bool_)
    assert eight_bits(raw, False)[..., 0].tolist() == [[0, 255], [255, 255]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_scaled_as_in_decoding(order: str) -> None:
    values = random(7, 8, dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    decoded = np.asarray(decode(buffer.getvalue()))
    assert (eight_bits(values.astype(f"{order}u2"), False)[..., 0] == decoded.reshape(7, 8)).all()


def test_transparency_is_laid_over_white_as_in_decoding() -> None:
    values = random(7, 8, 4)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert (eight_bits(values, False) == np.asarray(decode(buffer.getvalue()))).all()


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((2, 8, 9), False),
        ((2, 8, 9, 1), False),
        ((2, 8, 9, 4), False),
        ((2, 3, 8, 9), True),
        ((2, 1, 28, 28), True),
        ((2, 3, 8, 3), False),  # either: the usual order is taken
        ((2, 1, 1, 3), False),
        ((2, 3, 8, 4), False),
    ],
)
def test_which_axis_holds_the_channels(shape: tuple[int, ...], first: bool) -> None:
    array = DiskArray("", 0, "|u1", shape)
    assert channels_first_of(array, "here") is first
    assert bool(pixel_notes(array, "here")) is (first or shape[-1] == 4)


@pytest.mark.parametrize(
    "shape", [(2,), (2, 4, 8, 9), (2, 8, 9, 2), (2, 8, 9, 3, 1), (2, 0, 9), (2, 0, 9, 3)]
)
def test_shapes_that_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(WinnowError, match="shape"):
        channels_first_of(DiskArray("", 0, "|u1", shape), "here")


@pytest.mark.parametrize("dtype", ["|i1", "<i4", "<u4", "<f4", "<c8", "<U3", "|S1", "<M8[s]"])
def test_values_that_are_no_pixels(dtype: str) -> None:
    with pytest.raises(WinnowError, match="as uint8"):
        channels_first_of(DiskArray("", 0, dtype, (2, 8, 9)), "here")


def test_unpacking_stops_at_the_size(tmp_path: Path) -> None:
    content, target = bytes(range(200)), tmp_path / "target"
    unpack(io.BytesIO(content), target, 200, "here")
    assert target.read_bytes() == content
    for size, said in ((199, "more than"), (201, "less than"), (0, "more than")):
        with pytest.raises(WinnowError, match=said):
            unpack(io.BytesIO(content), target, size, "here")
        assert target.stat().st_size <= size


def test_the_size_of_a_file(tmp_path: Path) -> None:
    array = on_disk(tmp_path, random(3, 4, 3))
    check_size(array, "here")
    for shape, said in (((4, 4, 3), "less than"), ((2, 4, 3), "more than"), ((10**18, 4, 3), "less than")):
        with pytest.raises(WinnowError, match=said):
            check_size(DiskArray(array.path, array.offset, array.dtype, shape), "here")


def test_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_room(tmp_path / "a/b", 10, "here")
    assert (tmp_path / "a/b").is_dir()
    with pytest.raises(WinnowError, match="at most"):
        require_room(tmp_path, array_file.MAX_UNPACKED + 1, "here")
    monkeypatch.setattr(
        array_file.shutil, "disk_usage", lambda _: array_file.shutil._ntuple_diskusage(10, 5, 5)
    )
    with pytest.raises(WinnowError, match="only 5 are free"):
        require_room(tmp_path, 6, "here")


def test_workers_import_nothing_heavy() -> None:
    heavy = "{'pandas', 'pyarrow', 'stages.dataset.base'}"
    code = f"import sys, stages.ingestion.array_file; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
