"""Class folders: layouts, names, and what does not belong there."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dataset.ids import Split
from stages.errors import WinnowError
from stages.ingestion.archives import open_archive
from stages.ingestion.folders import ClassFolders
from stages.ingestion.source import BLOCK, Block, hidden, printable
from stages.ingestion.trees import FolderTree, Tree


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def tree_of(root: Path, *names: str) -> FolderTree:
    root.mkdir(exist_ok=True)
    for name in names:
        put(root / name)
    return FolderTree(root)


def listed(blocks: list[Block]) -> list[tuple[str, str | None, Split | None]]:
    return [row for block in blocks for row in zip(block.names, block.labels, block.splits, strict=True)]


def refused(blocks: list[Block]) -> dict[str, str]:
    rows = [row for block in blocks for row in block.refused]
    assert len({row.path for row in rows}) == len(rows)
    return {row.path: row.reason for row in rows}


def test_class_folders_without_splits(tmp_path: Path) -> None:
    source = ClassFolders(tree_of(tmp_path, "dog/2.png", "cat/deep/er/1.png", "cat/0.png"))
    assert source.kind == "class folders"
    assert source.classes == ["cat", "dog"]
    assert source.count == 3
    blocks = list(source.blocks())
    assert listed(blocks) == [
        ("cat/0.png", "cat", None),
        ("cat/deep/er/1.png", "cat", None),
        ("dog/2.png", "dog", None),
    ]
    assert [list(block.payload.read()) for block in blocks] == [[b"x"] * 3]
    assert blocks[0].weights == [1.0] * 3
    assert blocks[0].groups == [None] * 3


def test_splits_above_the_classes(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, "train/a/1", "train/b/2", "Valid/a/3", "val/a/3", "Testing/c/4")
    source = ClassFolders(tree)
    assert source.kind == "class folders with Testing/, Valid/, train/, val/"
    assert source.classes == ["a", "b", "c"]
    assert listed(list(source.blocks())) == [
        ("Testing/c/4", "c", "test"),
        ("Valid/a/3", "a", "val"),
        ("train/a/1", "a", "train"),
        ("train/b/2", "b", "train"),
        ("val/a/3", "a", "val"),
    ]


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    assert ClassFolders(tree_of(tmp_path, "valid/1", "invalid/2")).classes == ["invalid", "valid"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/a/1.png", "cat/2.png"], "both a split (train/) and a class (cat/)"),
        (["val/a/1.png", "test/a/2.png"], "no train/"),
        (["train/1.png", "test/2.png"], "without class folders"),
    ],
)
def test_ambiguous_layouts_are_said_so(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(WinnowError, match=r"ingest\.source") as caught:
        ClassFolders(tree_of(tmp_path, *names))
    assert said in str(caught.value)


def test_only_folders_make_class_folders(tmp_path: Path) -> None:
    assert not tree_of(tmp_path, "1.png", ".git/2.png").folders()
    assert tree_of(tmp_path, "a/1.png").folders()


def test_hidden_files_are_passed_over_and_loose_ones_refused(tmp_path: Path) -> None:
    source = ClassFolders(
        tree_of(tmp_path, "train/a/1", "train/a/.2", ".git/3", "README.md", "train/list.txt")
    )
    blocks = list(source.blocks())
    assert listed(blocks) == [("train/a/1", "a", "train")]
    assert refused(blocks) == {"README.md": "no_class_folder", "train/list.txt": "no_class_folder"}
    assert source.count == 1


def test_loose_links_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    tree = tree_of(tmp_path / "source", "a/1")
    (tmp_path / "source/b").symlink_to("a")
    (tmp_path / "source/c").symlink_to(tmp_path)
    blocks = list(ClassFolders(tree).blocks())
    assert refused(blocks) == {"b": "linked_folder", "c": "outside_source"}
    assert listed(blocks) == [("a/1", "a", None)]


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled"])
def test_unlabeled_files_have_neither_label_nor_split(tmp_path: Path, name: str) -> None:
    tree = tree_of(tmp_path, "train/a/1", f"train/{name}/2", f"{name}/3", f"{name}/x/4", "test/a/5")
    source = ClassFolders(tree)
    assert source.classes == ["a"]
    assert source.count == 5
    assert set(listed(list(source.blocks()))) == {
        ("train/a/1", "a", "train"),
        (f"train/{name}/2", None, None),
        (f"{name}/3", None, None),
        (f"{name}/x/4", None, None),
        ("test/a/5", "a", "test"),
    }


def test_equal_class_names_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    source = ClassFolders(tree_of(tmp_path, f"{composed}/1", f"{decomposed}/2", f" {composed} /3", "b/4"))
    assert source.classes == ["b", composed]
    assert [label for _, label, _ in listed(list(source.blocks()))].count(composed) == 3


def test_class_names_that_are_no_plain_text_are_refused(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, "a/1", "b\nc/2", "b\nc/3", "   /4", "x\\../5", os.fsdecode(b"caf\xe9") + "/6")
    source = ClassFolders(tree)
    assert source.classes == ["a"]
    blocks = list(source.blocks())
    assert listed(blocks) == [("a/1", "a", None)]
    assert refused(blocks) == {
        "b\\nc/2": "bad_label",
        "b\\nc/3": "bad_label",
        "   /4": "bad_label",
        "x\\../5": "bad_label",
        "caf\N{REPLACEMENT CHARACTER}/6": "bad_label",
    }
    assert all(str(tmp_path) not in row.detail for block in blocks for row in block.refused)


def test_names_that_are_not_text_can_be_written_down(tmp_path: Path) -> None:
    blocks = list(ClassFolders(tree_of(tmp_path, os.fsdecode(b"a/\xff.png"), "a/x\ny")).blocks())
    assert [name for name, _, _ in listed(blocks)] == ["a/x\\ny", "a/\N{REPLACEMENT CHARACTER}.png"]


def test_blocks_are_no_longer_than_they_may_be_and_span_classes(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, *(f"c{number}/{image}" for number in range(BLOCK // 2) for image in range(3)))
    source = ClassFolders(tree)
    sizes = [len(block.payload) for block in source.blocks()]
    assert sizes == [BLOCK, BLOCK // 2]
    assert source.count == sum(sizes)


def test_ten_thousand_classes(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(10_000):
            tar.addfile(tarfile.TarInfo(f"class{number}/1.png"))
    (tmp_path / "a.tar").write_bytes(content.getvalue())
    source = ClassFolders(open_archive(tmp_path / "a.tar", tmp_path))
    assert len(source.classes) == 10_000
    assert sum(len(block.names) for block in source.blocks()) == 10_000


def test_refused_members_of_an_archive_are_passed_on(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a/1.png", "../x.png", "b/2.png"):
            tar.addfile(tarfile.TarInfo(name))
    blocks = list(ClassFolders(open_archive(tmp_path / "a.tar", tmp_path)).blocks())
    assert [name for name, _, _ in listed(blocks)] == ["a/1.png", "b/2.png"]
    assert refused(blocks) == {"../x.png": "outside_source"}


# Without what an archive takes for a path on Windows: tests/ingestion/test_archives.py.
PARTS = st.text(
    st.characters(blacklist_characters="/\0\\:", blacklist_categories=["Cs"]), min_size=1, max_size=4
)
USUAL = st.sampled_from(["train", "val", "test", "unlabeled", "cat", "a.b", ".hidden", "Thumbs.db", "x\ny"])
PATHS = st.lists(USUAL | PARTS, min_size=1, max_size=4).filter(lambda parts: not {".", ".."} & set(parts))


def make(root: Path, paths: list[list[str]]) -> list[str]:
    """The files that could be made, relative to the root."""
    made = []
    for parts in paths:
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        except OSError:  # a file and a folder of one name
            continue
        made.append("/".join(parts))
    return sorted(set(made))


@settings(max_examples=150, deadline=None)
@given(st.lists(PATHS, max_size=8))
def test_every_visible_file_is_in_a_block_or_refused(paths: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "source")
        root.mkdir()
        made = make(root, paths)
        visible = [name for name in made if not any(map(hidden, name.split("/")))]
        with tarfile.open(Path(folder, "a.tar"), "w") as tar:
            for name in made:
                tar.add(root / name, name)
        archive = open_archive(Path(folder, "a.tar"), Path(folder))
        found = [_accounted(tree, len(visible)) for tree in (FolderTree(root), archive)]
        if all(given is not None for given in found):
            assert [sorted(given) for given in found] == [sorted(map(printable, visible))] * 2


def _accounted(tree: Tree, files: int) -> list[str] | None:
    """Every file that the reader accounts for, None where it says that the layout is no good."""
    try:
        source = ClassFolders(tree)
    except WinnowError:
        return None
    blocks = list(source.blocks())
    rows = [name for name, _, _ in listed(blocks)] + [row.path for block in blocks for row in block.refused]
    assert len(rows) == files
    return rows
