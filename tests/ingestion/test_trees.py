"""Folders as trees: what is listed, what may be reached, and how it is read."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.errors import UnusableError, WinnowError
from stages.ingestion.trees import FolderTree, Tree


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(tree: Tree, *names: str) -> list[object]:
    """Bytes, or the reason why not; by way of a pickle, as a worker does it."""
    payload = pickle.loads(pickle.dumps(tree.payload(names)))  # noqa: S301
    assert len(payload) == len(names)
    return [given.reason if isinstance(given, UnusableError) else given for given in payload.read()]


def test_names_are_relative_to_the_top_and_sorted(tmp_path: Path) -> None:
    for name in ("b/2", "b/10", "b/c/1", "a-b/1", "a/1", "top"):
        put(tmp_path / name)
    tree: Tree = FolderTree(tmp_path)
    assert tree.shown == str(tmp_path)
    assert tree.folders() == ["a", "a-b", "b"]
    assert tree.folders("b") == ["b/c"]
    assert tree.files() == ["top"]
    assert tree.files("b") == ["b/10", "b/2"]
    assert list(tree.walk()) == ["a/1", "a-b/1", "b/10", "b/2", "b/c/1", "top"]
    assert list(tree.walk("b")) == ["b/10", "b/2", "b/c/1"]
    assert tree.count() == 6
    assert tree.count("b") == 3


def test_hidden_files_and_folders_are_not_there(tmp_path: Path) -> None:
    for name in (".git/1", "a/.1", "__MACOSX/a/1", "a/Thumbs.db", "a/Thumbs.db.png"):
        put(tmp_path / name)
    tree = FolderTree(tmp_path)
    assert tree.folders() == ["a"]
    assert list(tree.walk()) == ["a/Thumbs.db.png"]
    assert tree.count() == 1


def test_what_is_read_and_opened(tmp_path: Path) -> None:
    path = put(tmp_path / "a/1", b"12345")
    put(tmp_path / "a/empty", b"")
    tree = FolderTree(tmp_path)
    assert read(tree, "a/1", "a/empty", "a/1") == [b"12345", b"", b"12345"]
    assert tree.problem("a/1") is None
    assert tree.local("a/1") == path.resolve()
    with tree.open("a/1") as file:
        assert file.read(3) == b"123"


def test_a_tree_below_reaches_nothing_above(tmp_path: Path) -> None:
    put(tmp_path / "a/b/1", b"1")
    (tmp_path / "a/b/up").symlink_to(put(tmp_path / "a/2"))
    tree = FolderTree(tmp_path).under("a/b")
    assert tree.shown == f"{tmp_path}/a/b"
    assert list(tree.walk()) == ["1", "up"]
    assert read(tree, "1", "up", "../2") == [b"1", "outside_source", "outside_source"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/hostname", "outside_source"),
        ("../secret", "outside_source"),
        ("a/../../secret", "outside_source"),
        ("a/1\0", "bad_name"),
        ("a/1\n", "bad_name"),
        ("a/\ud800", "bad_name"),
        ("", "unreadable"),
        ("a", "unreadable"),
        ("a/2", "unreadable"),
        ("a/1/2", "unreadable"),
        ("x" * 300, "unreadable"),
        ("a/" * 3000 + "1", "unreadable"),
        ("linked/1", "linked_folder"),
        ("away/x", "outside_source"),
    ],
)
def test_names_that_anybody_wrote(tmp_path: Path, name: str, reason: str) -> None:
    root = tmp_path / "source"
    put(root / "a/1")
    put(tmp_path / "secret")
    put(tmp_path / "other/x")
    (root / "linked").symlink_to("a")
    (root / "away").symlink_to(tmp_path / "other")
    tree = FolderTree(root)
    assert read(tree, name, "a/1") == [reason, b"x"]
    problem = tree.problem(name)
    assert problem is not None
    assert problem.reason == reason
    assert str(tmp_path) not in problem.detail
    with pytest.raises(WinnowError, match="cannot be read"):
        tree.open(name)
    with pytest.raises(WinnowError, match="cannot be read"):
        tree.local(name)


@pytest.mark.parametrize("folder", ["..", "/", "a/../..", "linked", "a/b\0"])
def test_folders_outside_are_not_entered(tmp_path: Path, folder: str) -> None:
    put(tmp_path / "source/a/1")
    (tmp_path / "source/linked").symlink_to(tmp_path)
    tree = FolderTree(tmp_path / "source")
    for enter in (tree.folders, tree.files, tree.count, tree.under, lambda name: list(tree.walk(name))):
        with pytest.raises(WinnowError, match="cannot be read"):
            enter(folder)


def test_links_are_followed_only_inside(tmp_path: Path) -> None:
    root = tmp_path / "source"
    put(root / "a/1", b"1")
    secret = put(tmp_path / "secret/x")
    links = {
        "in": "1",
        "in_by_way_of_up": "../a/1",
        "in_absolute": str(root / "a/1"),
        "in_twice": "in",
        "out": str(secret),
        "up": "../../secret/x",
        "loop": str(root),
        "here": ".",
        "away": str(secret.parent),
        "self": "self",
        "ping": "pong",
        "pong": "ping",
        "gone": "nothing",
    }
    for name, target in links.items():
        (root / "a" / name).symlink_to(target)
    tree = FolderTree(root)
    assert dict(zip(links, read(tree, *(f"a/{name}" for name in links)), strict=True)) == {
        "in": b"1",
        "in_by_way_of_up": b"1",
        "in_absolute": b"1",
        "in_twice": b"1",
        "out": "outside_source",
        "up": "outside_source",
        "loop": "linked_folder",
        "here": "linked_folder",
        "away": "outside_source",
        "self": "unreadable",
        "ping": "unreadable",
        "pong": "unreadable",
        "gone": "unreadable",
    }


class Stores:
    def __init__(self, *stores: Path) -> None:
        self.stores = stores
        self.asked = 0

    def __call__(self) -> Sequence[Path]:
        self.asked += 1
        return self.stores


def test_links_into_a_store_are_followed(tmp_path: Path) -> None:
    """By way of a listing, and by way of a table's names: one linked file among plain ones will do."""
    cached = put(tmp_path / "cache/ab/cdef", b"cached")
    put(tmp_path / "source/a/0", b"plain")
    (tmp_path / "source/a/1").symlink_to(cached)
    (tmp_path / "source/a/2").symlink_to(put(tmp_path / "cached/x"))
    (tmp_path / "source/a/3").symlink_to(tmp_path / "cache/ab")
    (tmp_path / "source/a/4").symlink_to(tmp_path / "cache/ab/../../cached/x")
    expected = [b"plain", b"cached", "outside_source", "linked_folder", "outside_source"]
    for listed in (True, False):
        stores = Stores(tmp_path / "cache")
        tree = FolderTree(tmp_path / "source", stores)
        names = list(tree.walk()) if listed else [f"a/{number}" for number in range(5)]
        assert read(tree, *names) == expected
        assert read(tree, "a/1") == [b"cached"]
        assert tree.local("a/1") == cached.resolve()
        assert stores.asked == 1


def test_a_store_behind_a_link(tmp_path: Path) -> None:
    put(tmp_path / "disk/ab/cdef", b"cached")
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/1").symlink_to(tmp_path / "cache/ab/cdef")
    assert read(FolderTree(tmp_path / "source", lambda: [tmp_path / "cache"]), "1") == [b"cached"]


def test_stores_are_not_asked_for_without_need(tmp_path: Path) -> None:
    put(tmp_path / "a/1")
    (tmp_path / "a/2").symlink_to("1")
    stores = Stores(tmp_path)
    tree = FolderTree(tmp_path, stores)
    assert read(tree, *tree.walk(), "nowhere/1") == [b"x", b"x", "unreadable"]
    assert stores.asked == 0
    assert not tree.refused


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "disk/1")
    (tmp_path / "source").symlink_to(tmp_path / "disk")
    assert read(FolderTree(tmp_path / "source"), "1") == [b"x"]


@pytest.mark.parametrize("name", ["nothing", "file", "self"])
def test_what_is_no_folder_is_said_so(tmp_path: Path, name: str) -> None:
    put(tmp_path / "file")
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(WinnowError, match=r"ingest\.source .* cannot be listed"):
        FolderTree(tmp_path / name)


def test_a_pipe_does_not_stop_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read(FolderTree(tmp_path), "pipe") == ["unreadable"]


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "1", b"12345")
    monkeypatch.setattr("stages.ingestion.payloads.MAX_BYTES", 4)
    tree = FolderTree(tmp_path)
    assert read(tree, "1") == ["too_large"]
    with tree.open("1") as file:
        assert file.read() == b"12345"


def test_names_that_are_not_utf_8_can_be_read(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_bytes(b"x")
    tree = FolderTree(tmp_path)
    assert read(tree, *tree.walk()) == [b"x"]


def test_a_closed_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a/closed/1")
    put(tmp_path / "a/open/1")
    tree, scandir = FolderTree(tmp_path), os.scandir

    def guarded(path: str) -> object:
        if Path(path).name == "closed":  # root could read it, whatever its mode
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert list(tree.walk()) == ["a/open/1"]
    assert [(row.path, row.reason) for row in tree.refused] == [("a/closed", "unreadable")]


def test_a_folder_that_vanishes_is_refused_once(tmp_path: Path) -> None:
    put(tmp_path / "a/1")
    put(tmp_path / "b/1")
    tree = FolderTree(tmp_path)
    names = tree.walk()
    assert next(names) == "a/1"
    (tmp_path / "b/1").unlink()
    (tmp_path / "b").rmdir()
    assert list(names) == []
    assert list(tree.walk("b")) == []
    assert [(row.path, row.reason) for row in tree.refused] == [("b", "unreadable")]
