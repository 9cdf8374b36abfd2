"""Archives as trees: what is read, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UnusableError, WinnowError
from stages.ingestion.archives import ENDINGS, ArchiveTree, is_archive, open_archive

FILES = {
    "top.txt": b"top",
    "train/cat/1.png": b"one",
    "train/cat/deep/2.png": b"two" * 1000,
    "train/dog/3.png": b"",
    "test/cat/4.png": os.urandom(70_000),
}


def tar_of(files: dict[str, bytes], **options: object) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", **options) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


PACKED: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    ".zip": zip_of,
    ".tar": tar_of,
    ".tar.gz": lambda files: gzip.compress(tar_of(files)),
    ".tgz": lambda files: gzip.compress(tar_of(files)),
    ".tar.bz2": lambda files: bz2.compress(tar_of(files)),
    ".tar.xz": lambda files: lzma.compress(tar_of(files)),
}
BOTH = [".zip", ".tar"]


def opened(folder: Path, content: bytes, ending: str) -> ArchiveTree:
    path, scratch = folder / f"archive{ending}", folder / "scratch"
    path.write_bytes(content)
    scratch.mkdir(exist_ok=True)
    return open_archive(path, scratch)


def read(tree: ArchiveTree, *names: str) -> list[object]:
    """Bytes, or the reason why not; by way of a pickle, as a worker does it."""
    payload = pickle.loads(pickle.dumps(tree.payload(names)))  # noqa: S301
    assert len(payload) == len(names)
    return [given.reason if isinstance(given, UnusableError) else given for given in payload.read()]


def refused(tree: ArchiveTree) -> dict[str, str]:
    return {row.path: row.reason for row in tree.refused}


def test_archives_are_told_by_their_names() -> None:
    assert all(is_archive(Path(f"data{ending}")) for ending in ENDINGS)
    assert is_archive(Path("DATA.ZIP"))
    assert not any(is_archive(Path(name)) for name in ("data", "data.gz", "data.npz", "tar", "data.zip.txt"))


@pytest.mark.parametrize("ending", PACKED)
def test_every_kind_is_read(tmp_path: Path, ending: str) -> None:
    tree = opened(tmp_path, PACKED[ending](FILES), ending)
    assert tree.shown == str(tmp_path / f"archive{ending}")
    assert tree.folders() == ["test", "train"]
    assert tree.folders("train") == ["train/cat", "train/dog"]
    assert tree.files() == ["top.txt"]
    assert tree.files("train/cat") == ["train/cat/1.png"]
    assert list(tree.walk()) == sorted(FILES, key=lambda name: name.split("/"))
    assert list(tree.walk("train/cat")) == ["train/cat/1.png", "train/cat/deep/2.png"]
    assert tree.count() == len(FILES)
    assert tree.count("train") == 3
    assert tree.count("tra") == 0
    assert read(tree, *FILES) == list(FILES.values())
    assert not tree.refused


@pytest.mark.parametrize("ending", BOTH)
def test_one_file_as_a_stream_and_on_disk(tmp_path: Path, ending: str) -> None:
    tree = opened(tmp_path, PACKED[ending](FILES), ending)
    for name, data in FILES.items():
        with tree.open(name) as file:
            assert file.read(10) == data[:10]
            assert file.read() == data[10:]
        local = tree.local(name)
        assert local.read_bytes() == data
        assert local.parent == tmp_path / "scratch"
        assert Path(name).name not in local.name
        assert tree.local(name) == local  # unpacked once


@pytest.mark.parametrize("ending", BOTH)
def test_a_tree_below_reaches_nothing_above(tmp_path: Path, ending: str) -> None:
    files = FILES | {"train/../../x": b"x"}
    tree = opened(tmp_path, PACKED[ending](files), ending).under("train").under("cat")
    assert tree.shown == f"{tmp_path}/archive{ending}/train/cat"
    assert tree.folders() == ["deep"]
    assert list(tree.walk()) == ["1.png", "deep/2.png"]
    assert tree.count("deep") == 1
    assert read(tree, "1.png", "../dog/3.png", "3.png", "") == [
        b"one",
        "outside_source",
        "unreadable",
        "unreadable",
    ]
    assert refused(tree) == {"train/../../x": "outside_source"}


@pytest.mark.parametrize("ending", BOTH)
def test_names_of_archives(tmp_path: Path, ending: str) -> None:
    """Hostile ones are refused, what file managers leave behind is passed over, and nothing is unpacked."""
    files = dict.fromkeys(
        [
            "../../x",
            "a/../../x",
            "/etc/x",
            "C:/x",
            "C:\\x",
            "..\\..\\x",
            "\\\\server\\x",
            "./a/1.png",
            "a//2.png",
            "a/12:30.png",
            "__MACOSX/a/._1.png",
            "a/.DS_Store",
            "a/x\ny.png",
        ],
        b"x",
    )
    tree = opened(tmp_path, PACKED[ending](files), ending)
    assert set(refused(tree).values()) == {"outside_source"}
    assert len(tree.refused) == 7
    assert sorted(tree.walk()) == ["a/1.png", "a/12:30.png", "a/2.png", "a/x\ny.png"]
    assert read(tree, "a/1.png", "a/2.png", "a/x\ny.png") == [b"x", b"x", "bad_name"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [f"archive{ending}", "scratch"]


@pytest.mark.parametrize("ending", BOTH)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "unreadable"),
        ("train", "unreadable"),
        ("train\0cat\x001.png", "bad_name"),
        ("/train/cat/1.png", "outside_source"),
        ("train/../top.txt", "outside_source"),
        ("\ud800", "unreadable"),
        ("", "unreadable"),
    ],
)
def test_names_that_anybody_wrote(tmp_path: Path, ending: str, name: str, reason: str) -> None:
    tree = opened(tmp_path, PACKED[ending](FILES), ending)
    assert read(tree, "train/cat/1.png", name) == [b"one", reason]
    problem = tree.problem(name)
    assert problem is not None
    assert problem.reason == reason
    with pytest.raises(WinnowError, match="cannot be read"):
        tree.open(name)
    with pytest.raises(WinnowError, match="cannot be read"):
        tree.local(name)


def test_links_and_devices_of_a_tar(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, kind, target in [
            ("a/first", tarfile.REGTYPE, ""),
            ("a/again", tarfile.LNKTYPE, "a/first"),
            ("a/nowhere", tarfile.LNKTYPE, "a/nothing"),
            ("a/passwd", tarfile.LNKTYPE, "/etc/passwd"),
            ("a/beside", tarfile.SYMTYPE, "first"),
            ("a/out", tarfile.SYMTYPE, "../../x"),
            ("a/etc", tarfile.SYMTYPE, "/etc"),
            ("a/null", tarfile.CHRTYPE, ""),
            ("a/pipe", tarfile.FIFOTYPE, ""),
            ("a", tarfile.DIRTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"one"))
    tree = opened(tmp_path, content.getvalue(), ".tar")
    assert list(tree.walk()) == ["a/again", "a/first"]
    assert read(tree, "a/again", "a/first", "a/etc") == [b"one", b"one", "unreadable"]
    assert refused(tree) == {
        "a/nowhere": "unreadable",
        "a/passwd": "outside_source",
        "a/beside": "unreadable",
        "a/out": "outside_source",
        "a/etc": "outside_source",
        "a/null": "unreadable",
        "a/pipe": "unreadable",
    }


@pytest.mark.parametrize(("target", "reason"), [("b", "unreadable"), ("../x", "outside_source")])
def test_links_of_a_zip(tmp_path: Path, target: str, reason: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for mode, name in ((stat.S_IFLNK, "link"), (stat.S_IFIFO, "pipe")):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (mode | 0o777) << 16
            archive.writestr(info, target)
    tree = opened(tmp_path, content.getvalue(), ".zip")
    assert refused(tree) == {"link": reason, "pipe": "unreadable"}
    assert tree.count() == 0


@pytest.mark.parametrize("ending", BOTH)
def test_of_one_name_the_last_counts(tmp_path: Path, ending: str) -> None:
    content = tar_of({"a/1": b"old", "a/2": b"other", "./a/1": b"new"})
    if ending == ".zip":
        content = zip_of({"a/1": b"old", "a/2": b"other", "./a/1": b"new"})
    tree = opened(tmp_path, content, ending)
    assert list(tree.walk()) == ["a/1", "a/2"]
    assert read(tree, "a/1", "a/2") == [b"new", b"other"]
    assert refused(tree) == {"a/1": "unreadable"}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_of_a_tar(tmp_path: Path, kind: int) -> None:
    names = ["short", "f" * 90 + "/" + "n" * 90, "\N{SNOWMAN}/\N{SNOWMAN}"]
    if kind != tarfile.USTAR_FORMAT:
        names.append("d/" * 100 + "n" * 150)
    tree = opened(tmp_path, tar_of(dict.fromkeys(names, b"x"), format=kind), ".tar")
    assert sorted(tree.walk()) == sorted(names)
    assert read(tree, *names) == [b"x"] * len(names)


def test_names_of_a_zip_that_does_not_say_how_they_are_written(tmp_path: Path) -> None:
    content = zip_of({"caf__/1": b"1", "caf_/2": b"2", "d__n/3": b"3"})
    content = content.replace(b"caf__", b"caf\xc3\xa9").replace(b"caf_/", b"caf\x82/")
    tree = opened(tmp_path, content.replace(b"d__n", b"d\\\\n"), ".zip")
    assert list(tree.walk()) == ["caf\xe9/1", "caf\xe9/2", "d/n/3"]


def test_what_a_zip_may_hold_that_is_not_read(tmp_path: Path) -> None:
    content = zip_of({"b": b"x"}, zipfile.ZIP_BZIP2)
    assert refused(opened(tmp_path, content, ".zip")) == {"b": "unreadable"}
    content = bytearray(zip_of({"e": b"x"}))
    content[content.index(b"PK\1\2") + 8] |= 1  # encrypted
    assert refused(opened(tmp_path, bytes(content), ".zip")) == {"e": "unreadable"}
    content[content.index(b"PK\1\2") + 8] = 0
    struct.pack_into("<L", content, content.index(b"PK\1\2") + 42, 1 << 20)  # where it is
    assert refused(opened(tmp_path, bytes(content), ".zip")) == {"e": "damaged"}


def test_large_directories_of_a_zip(tmp_path: Path) -> None:
    """More members than 16 bits count: a zip64 directory."""
    content = zip_of({f"{number // 1000}/{number}": b"" for number in range(70_000)}, zipfile.ZIP_STORED)
    tree = opened(tmp_path, content, ".zip")
    assert tree.count() == 70_000
    assert len(tree.folders()) == 70
    assert read(tree, "69/69999", "0/0", "70/70000") == [b"", b"", "unreadable"]


def test_a_zip_with_something_before_it(tmp_path: Path) -> None:
    tree = opened(tmp_path, b"#!/bin/sh\n" * 100 + zip_of(FILES), ".zip")
    assert read(tree, *FILES) == list(FILES.values())


def test_a_member_of_another_content_is_damaged(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        sound = zip_of({"a": data, "b": b"sound"}, method)
        places = range(31, 31 + 200)  # of a's content
        for place in places:
            broken = bytearray(sound)
            broken[place] ^= 0x55
            tree = opened(tmp_path, bytes(broken), ".zip")
            assert read(tree, "a", "b") == ["damaged", b"sound"]
        with pytest.raises(WinnowError, match=r"a in ingest\.source"), tree.open("a") as file:
            file.read()


@pytest.mark.parametrize("said", [0, 1, 999, 1001, 2**29])
def test_a_member_of_another_size_is_damaged(tmp_path: Path, said: int) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = bytearray(zip_of({"a": bytes(1000)}, method))
        struct.pack_into("<L", content, content.index(b"PK\1\2") + 24, said)
        given = read(opened(tmp_path, bytes(content), ".zip"), "a")
        assert given == ["too_large" if said == 2**29 else "damaged"]


def test_members_of_too_many_bytes_are_streamed_but_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.ingestion.payloads.MAX_BYTES", 60_000)
    for ending in BOTH:
        tree = opened(tmp_path, PACKED[ending](FILES), ending)
        assert read(tree, "test/cat/4.png", "top.txt") == ["too_large", b"top"]
        assert tree.local("test/cat/4.png").read_bytes() == FILES["test/cat/4.png"]


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_tar_that_unpacks_to_too_much_is_given_up(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = PACKED[ending]({"zeros": bytes(2**25)})
    opened(tmp_path, content, ending)
    monkeypatch.setattr("stages.ingestion.archives.UNSUSPECTED", 2**22)
    monkeypatch.setattr("stages.ingestion.archives.PLAUSIBLE_RATIO", 2)
    for path in (tmp_path / "scratch").iterdir():
        path.unlink()
    with pytest.raises(WinnowError, match="bomb"):
        opened(tmp_path, content, ending)
    assert sum(path.stat().st_size for path in (tmp_path / "scratch").iterdir()) <= 2**22


def test_zip_bombs(tmp_path: Path) -> None:
    bomb = bytearray(zip_of({str(number): bytes(1000) for number in range(10)}))
    place = 0
    while (place := bomb.find(b"PK\1\2", place)) >= 0:
        struct.pack_into("<L", bomb, place + 24, 2**30)
        place += 4
    with pytest.raises(WinnowError, match="bomb"):
        opened(tmp_path, bytes(bomb), ".zip")
    overlapping = bytearray(zip_of({str(number): os.urandom(1000) for number in range(10)}))
    place = 0
    while (place := overlapping.find(b"PK\1\2", place)) >= 0:
        struct.pack_into("<L", overlapping, place + 20, 2000)
        struct.pack_into("<L", overlapping, place + 42, 0)
        place += 4
    with pytest.raises(WinnowError, match="bomb"):
        opened(tmp_path, bytes(overlapping), ".zip")


def test_sparse_files_of_a_tar_are_refused(tmp_path: Path) -> None:
    """They may say to be any size."""
    content = bytearray(tar_of({"sparse": b"x", "plain": b"y"}, format=tarfile.GNU_FORMAT))
    header = tarfile.TarInfo("sparse")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 1
    content[:512] = header.tobuf(tarfile.GNU_FORMAT)
    tree = opened(tmp_path, bytes(content), ".tar")
    assert refused(tree) == {"sparse": "unreadable"}
    assert read(tree, "plain") == [b"y"]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_without_measure_are_not_read(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("name")
    header.type, header.size = kind, 2**33
    with pytest.raises(WinnowError, match="8589934592 bytes"):
        opened(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + bytes(2048), ".tar")


@pytest.mark.parametrize("ending", PACKED)
def test_archives_that_are_cut_off(tmp_path: Path, ending: str) -> None:
    content = PACKED[ending](FILES)
    whole = len(content.rstrip(b"\0")) if ending == ".tar" else len(content)  # then there is only padding
    for size in (0, 1, 100, whole // 2, whole - 20):
        with pytest.raises(WinnowError, match=r"ingest\.source .* is no sound .*bring it again") as caught:
            opened(tmp_path, content[:size], ending)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_no_archive_is_said_so(tmp_path: Path, ending: str) -> None:
    with pytest.raises(WinnowError, match="is no sound"):
        opened(tmp_path, b"no archive at all" * 100, ending)
    with pytest.raises(WinnowError, match="cannot be read"):
        open_archive(tmp_path / f"nothing{ending}", tmp_path)


def test_a_tar_may_be_packed_otherwise_than_its_name_says(tmp_path: Path) -> None:
    assert opened(tmp_path, tar_of(FILES), ".tar.gz").count() == len(FILES)
    assert opened(tmp_path, lzma.compress(tar_of(FILES)) + lzma.compress(b""), ".tar").count() == len(FILES)


def test_an_archive_that_vanished_is_unreadable(tmp_path: Path) -> None:
    tree = opened(tmp_path, tar_of(FILES), ".tar")
    (tmp_path / "archive.tar").unlink()
    assert read(tree, "top.txt", "nothing") == ["unreadable", "unreadable"]


def test_an_archive_without_files(tmp_path: Path) -> None:
    for ending in BOTH:
        tree = opened(tmp_path, PACKED[ending]({}), ending)
        assert (tree.folders(), list(tree.walk()), tree.count()) == ([], [], 0)
        assert read(tree, "a") == ["unreadable"]


def test_workers_import_nothing_heavy() -> None:
    heavy = "{'pyarrow', 'pandas', 'tarfile'}"
    code = f"import stages.ingestion.payloads, sys; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


NAMES = st.sampled_from(["a/1", "a/b/2", "../x", "/x", "a/../1", "a\\b", ".h/1", "x\ny", "\xe9/1"]) | st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=20
)


def _check(content: bytes, ending: str) -> None:
    """Rows or a `WinnowError`, and nothing written but scratch files."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tree = opened(Path(folder), content, ending)
        except WinnowError as error:
            assert "\n" not in str(error)
            return
        names = list(tree.walk())
        assert len(names) == tree.count()
        assert len(set(names)) == len(names)
        given = read(tree, *names)
        assert all(isinstance(one, bytes | str) for one in given)
        assert {path.name for path in Path(folder).iterdir()} == {f"archive{ending}", "scratch"}


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(BOTH),
    st.dictionaries(NAMES, st.binary(max_size=50), max_size=5),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), max_size=6),
)
def test_damaged_archives_are_read_or_refused(
    ending: str, files: dict[str, bytes], changes: list[tuple[int, int]]
) -> None:
    content = bytearray(PACKED[ending](files))
    for place, change in changes:
        content[place % len(content)] ^= change
    _check(bytes(content), ending)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(BOTH), st.binary(max_size=1200))
def test_any_bytes_are_read_or_refused(ending: str, content: bytes) -> None:
    _check(content, ending)
    _check(zip_of({"a": b"x"})[: len(content)] + content + b"PK\5\6" + content[:18].ljust(18, b"\0"), ending)
