"""The catalogue's .npz files, and which reader a source gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.dataset import pixel_id
from stages.errors import WinnowError
from stages.sources.arrays import NpzArrays
from stages.sources.folders import ClassFolders
from stages.sources.opening import open_source


def arrays(**changes: Any) -> dict[str, Any]:
    images = np.arange(4 * 8 * 8 * 3).reshape(4, 8, 8, 3).astype(np.uint8)
    plain = {
        "images": images,
        "labels": np.array([1, 0, 1, 0]),
        "split": np.array(["train", "train", "test", "test"]),
        "classes": np.array(["cat", "dog"]),
    }
    return {name: array for name, array in {**plain, **changes}.items() if array is not None}


def write(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays(**changes))
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_become_items(tmp_path: Path, channels: int) -> None:
    images = arrays()["images"][..., :channels]
    source = NpzArrays(write(tmp_path / "set.npz", images=images))
    assert [(item.source, item.label, item.split) for item in source.items] == [
        ("set.npz#0", "dog", "train"),
        ("set.npz#1", "cat", "train"),
        ("set.npz#2", "dog", "test"),
        ("set.npz#3", "cat", "test"),
    ]
    picture = source.read(2)
    assert picture.sample_id == pixel_id(images[2])
    assert (np.asarray(picture.image).reshape(8, 8, channels) == images[2]).all()


def test_a_split_is_not_needed(tmp_path: Path) -> None:
    assert {item.split for item in NpzArrays(write(tmp_path / "set.npz", split=None)).items} == {None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": None}, "lacks images"),
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, "must be uint8"),
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "must be uint8"),
        ({"labels": np.array([0, 1])}, "must be 4 integers"),
        ({"labels": np.array([0, 1, 2, 0])}, "from 0 to 2"),
        ({"labels": np.array([0, 1, -1, 0])}, "from -1 to 1"),
        ({"split": np.array(["train", "train", "test", "dev"])}, "'dev'"),
        ({"split": np.array(["train"])}, "1 entries"),
        ({"classes": np.array(["cat", "cat"])}, "stands twice"),
        ({"classes": np.array(["cat", object()], dtype=object)}, "not an .npz of plain arrays"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "set.npz", **changes)
    with pytest.raises(WinnowError) as caught:
        NpzArrays(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WinnowError, match=r"not an \.npz"):
        NpzArrays(path)
    path.write_text("words")
    with pytest.raises(WinnowError, match=r"not an \.npz"):
        NpzArrays(path)


def test_the_reader_is_chosen_by_what_lies_there(tmp_path: Path) -> None:
    path = write(tmp_path / "mnist/mnist.npz")
    (tmp_path / "mine/a").mkdir(parents=True)
    assert isinstance(open_source(path), NpzArrays)
    assert isinstance(open_source(path.parent), NpzArrays)
    assert isinstance(open_source(tmp_path / "mine"), ClassFolders)


def test_sources_that_no_reader_takes(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="is not there"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "file.zip").write_bytes(b"")
    with pytest.raises(WinnowError, match="is a file"):
        open_source(tmp_path / "file.zip")
    write(tmp_path / "two/1.npz")
    write(tmp_path / "two/2.npz")
    with pytest.raises(WinnowError, match=r"2 \.npz files"):
        open_source(tmp_path / "two")
