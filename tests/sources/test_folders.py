"""Class folders: layouts, links, and what does not belong there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.errors import WinnowError
from stages.sources.base import UnusableError
from stages.sources.folders import ClassFolders


def put(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return path


def listed(source: ClassFolders) -> list[tuple[str, str, str | None]]:
    return [(item.source, item.label, item.split) for item in source.items]


def refused(source: ClassFolders) -> dict[str, str]:
    return {row.source: row.reason for row in source.refused}


def test_class_folders_without_splits(tmp_path: Path) -> None:
    for name in ("dog/2.png", "cat/deep/er/1.png", "cat/0.png"):
        put(tmp_path / name)
    source = ClassFolders(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert listed(source) == [
        ("cat/0.png", "cat", None),
        ("cat/deep/er/1.png", "cat", None),
        ("dog/2.png", "dog", None),
    ]


def test_splits_above_the_classes(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "Valid/a/3.png", "test/c/4.png"):
        put(tmp_path / name)
    source = ClassFolders(tmp_path)
    assert source.classes == ["a", "b", "c"]
    assert {name: split for name, _, split in listed(source)} == {
        "train/a/1.png": "train",
        "train/b/2.png": "train",
        "Valid/a/3.png": "val",
        "test/c/4.png": "test",
    }


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    put(tmp_path / "valid/1.png")
    put(tmp_path / "invalid/2.png")
    assert ClassFolders(tmp_path).classes == ["invalid", "valid"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/a/1.png", "cat/2.png"], "both a split (train/) and a class (cat/)"),
        (["val/a/1.png", "test/a/2.png"], "no train/"),
        (["train/1.png", "test/2.png"], "without class folders"),
    ],
)
def test_ambiguous_layouts_are_said_so(tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        put(tmp_path / name)
    with pytest.raises(WinnowError, match=r"ingest\.source") as caught:
        ClassFolders(tmp_path)
    assert said in str(caught.value)


def test_hidden_files_are_passed_over_and_loose_ones_refused(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/.2.png", ".git/3.png", "a/Thumbs.db.png"):
        put(tmp_path / name)
    (tmp_path / "a/Thumbs.db").write_bytes(b"")
    (tmp_path / "README.md").write_text("hello")
    source = ClassFolders(tmp_path)
    assert [item.source for item in source.items] == ["a/1.png", "a/Thumbs.db.png"]
    assert refused(source) == {"README.md": "no_class_folder"}


def test_unlabeled_files_are_counted_and_left_out(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", "unlabeled/3.png", "unlabeled/x/4.png"):
        put(tmp_path / name)
    source = ClassFolders(tmp_path)
    assert source.classes == ["a", "b"]
    assert source.unlabeled == 2


def test_links_are_followed_only_inside(tmp_path: Path) -> None:
    root = tmp_path / "source"
    put(root / "a/1.png")
    secret = put(tmp_path / "secret/x.png")
    (root / "a/out.png").symlink_to(secret)
    (root / "a/up.png").symlink_to("../../secret/x.png")
    (root / "a/in.png").symlink_to("1.png")
    (root / "a/loop").symlink_to(root)
    (root / "b").symlink_to(secret.parent)
    (root / "a/self.png").symlink_to("self.png")
    source = ClassFolders(root)
    assert [item.source for item in source.items] == ["a/1.png", "a/in.png"]
    assert refused(source) == {
        "a/out.png": "outside_source",
        "a/up.png": "outside_source",
        "a/loop": "linked_folder",
        "b": "outside_source",
        "a/self.png": "unreadable",
    }


def test_links_into_a_store_are_followed(tmp_path: Path) -> None:
    cached = put(tmp_path / "cache/ab/cdef.png")
    link = tmp_path / "source/a/1.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(cached)
    source = ClassFolders(tmp_path / "source", lambda: [tmp_path / "cache"])
    assert [item.source for item in source.items] == ["a/1.png"]
    assert not source.refused
    assert source.read(0).image.size == (4, 4)


def test_the_source_itself_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "disk/a/1.png")
    (tmp_path / "source").symlink_to(tmp_path / "disk")
    assert [item.source for item in ClassFolders(tmp_path / "source").items] == ["a/1.png"]


def test_equal_pixels_have_equal_keys_in_any_format(tmp_path: Path) -> None:
    put(tmp_path / "a/1.png", 7)
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(tmp_path / "a/2.bmp")
    put(tmp_path / "a/3.png", 8)
    first, second, third = (ClassFolders(tmp_path).read(index) for index in range(3))
    assert first.sample_id != second.sample_id
    assert first.pixel_key == second.pixel_key != third.pixel_key


def test_a_pipe_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a/pipe.png")
    with pytest.raises(UnusableError, match="unreadable"):
        ClassFolders(tmp_path).read(0)


def test_a_file_that_vanished_is_unreadable(tmp_path: Path) -> None:
    path = put(tmp_path / "a/1.png")
    source = ClassFolders(tmp_path)
    path.unlink()
    with pytest.raises(UnusableError) as caught:
        source.read(0)
    assert caught.value.reason == "unreadable"
    assert str(tmp_path) not in caught.value.detail


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a/1.png")
    monkeypatch.setattr("stages.sources.folders.MAX_BYTES", 10)
    with pytest.raises(UnusableError, match="too_large"):
        ClassFolders(tmp_path).read(0)


def test_names_that_are_not_text_can_be_written_down(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"x")
    assert [item.source for item in ClassFolders(tmp_path).items] == ["a/\N{REPLACEMENT CHARACTER}.png"]
