"""Arrays on disk: how images are read from them, and what they may unpack to."""

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

from stages.errors import WinnowError
from stages.reading.decode import decode
from stages.sources.arrayfiles import stored
from stages.sources.arrayfiles.stored import (
    ArrayPayload,
    Stored,
    channels_first_of,
    check_size,
    eight_bits,
    pixel_notes,
    require_room,
    unpack,
)
from stages.sources.base import UnusableError


def on_disk(folder: Path, array: np.ndarray, offset: int = 16) -> Stored:
    path = folder / "array"
    path.write_bytes(bytes(offset) + array.tobytes())
    return Stored(str(path), offset, array.dtype.str, array.shape)


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
    array = Stored("", 0, "|u1", shape)
    assert channels_first_of(array, "here") is first
    assert bool(pixel_notes(array, "here")) is (first or shape[-1] == 4)


@pytest.mark.parametrize(
    "shape", [(2,), (2, 4, 8, 9), (2, 8, 9, 2), (2, 8, 9, 3, 1), (2, 0, 9), (2, 0, 9, 3)]
)
def test_shapes_that_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(WinnowError, match="shape"):
        channels_first_of(Stored("", 0, "|u1", shape), "here")


@pytest.mark.parametrize("dtype", ["|i1", "<i4", "<u4", "<f4", "<c8", "<U3", "|S1", "<M8[s]"])
def test_values_that_are_no_pixels(dtype: str) -> None:
    with pytest.raises(WinnowError, match="as uint8"):
        channels_first_of(Stored("", 0, dtype, (2, 8, 9)), "here")


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
            check_size(Stored(array.path, array.offset, array.dtype, shape), "here")


def test_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_room(tmp_path / "a/b", 10, "here")
    assert (tmp_path / "a/b").is_dir()
    with pytest.raises(WinnowError, match="at most"):
        require_room(tmp_path, stored.MAX_UNPACKED + 1, "here")
    monkeypatch.setattr(stored.shutil, "disk_usage", lambda _: stored.shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(WinnowError, match="only 5 are free"):
        require_room(tmp_path, 6, "here")


def test_workers_import_nothing_heavy() -> None:
    heavy = "{'pandas', 'pyarrow', 'stages.dataset'}"
    code = f"import sys, stages.sources.arrayfiles.stored; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
