"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.dataset.base import Dataset
from stages.dataset.files import new_file, new_folder, read_array, read_table, write_json, write_table
from stages.errors import WinnowError


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_array(tmp_path / "a.npy")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError), new_folder(target) as folder:
        (folder / "new").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
    with new_folder(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out.txt"
    with new_file(target) as partial:
        partial.write_text("old")
    with pytest.raises(RuntimeError), new_file(target) as partial:
        partial.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_the_same_content_gives_the_same_bytes(tiny_dataset: Dataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", tiny_dataset.samples.sample(frac=1, random_state=0))
        write_json(tmp_path / f"{name}.json", {"é": 1.5})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "c.json", float("nan"))


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "issues.parquet"
    path.write_bytes(b"junk")
    with pytest.raises(WinnowError, match=r"issues\.parquet is damaged .*dvc checkout") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
