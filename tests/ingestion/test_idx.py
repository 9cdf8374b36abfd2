"""MNIST's IDX files: which are found, and what they have to hold."""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import WinnowError
from stages.ingestion.archives import open_archive
from stages.ingestion.idx import Idx, find
from stages.ingestion.trees import FolderTree

IMAGES = np.arange(6 * 4 * 3).reshape(6, 4, 3).astype(np.uint8)
LABELS = np.array([7, 0, 10, 2, 0, 7], np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def packed_idx(array: np.ndarray) -> bytes:
    return gzip.compress(idx(array), mtime=0)  # else the same array gives other bytes in another second


PAIR = {"train-images-idx3-ubyte": idx(IMAGES), "train-labels-idx1-ubyte": idx(LABELS)}


def write(folder: Path, files: dict[str, bytes]) -> FolderTree:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        packed = name.endswith(".gz") and not content.startswith(b"\x1f\x8b")
        (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return FolderTree(folder)


def opened(tree: FolderTree) -> Idx:
    names = find(tree)
    assert names is not None
    return Idx(tree, names, Path(tempfile.mkdtemp(dir=tree.local(names[0]).parent)) / "scratch")


def refusal(tree: FolderTree) -> str:
    with pytest.raises(WinnowError) as caught:
        opened(tree)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    "pattern", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "emnist-letters-{}-{}-idx{}-ubyte"]
)
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_a_set_with_its_split(tmp_path: Path, packed: str, pattern: str, test: str) -> None:
    def name(split: str, role: str) -> str:
        return pattern.format(split, role, 3 if role == "images" else 1) + packed

    tree = write(
        tmp_path,
        {
            name("train", "images"): idx(IMAGES),
            name("train", "labels"): idx(LABELS),
            name(test, "images"): idx(IMAGES[:2]),
            name(test, "labels"): idx(LABELS[:2]),
        },
    )
    source = opened(tree)
    first, second = source.blocks()
    assert first.names == [f"{name('train', 'images')}#{row}" for row in range(6)]
    assert first.labels == ["7", "0", "10", "2", "0", "7"]
    assert first.splits == ["train"] * 6
    assert second.names == [f"{name(test, 'images')}#{row}" for row in range(2)]
    assert second.splits == ["test"] * 2
    assert (np.stack(list(first.payload.read()))[..., 0] == IMAGES).all()
    assert list(source.classes) == ["0", "2", "7", "10"]
    assert (source.count, source.kind) == (8, "IDX files with train, test")


def test_a_set_without_a_split(tmp_path: Path) -> None:
    colour = np.arange(6 * 4 * 3 * 3).reshape(6, 4, 3, 3).astype(np.uint8)
    source = opened(write(tmp_path, {"images-idx4-ubyte": idx(colour), "labels-idx1-ubyte": idx(LABELS)}))
    (block,) = source.blocks()
    assert block.splits == [None] * 6
    assert (np.stack(list(block.payload.read())) == colour).all()


def test_packed_and_plain_side_by_side(tmp_path: Path) -> None:
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    files = dict(zip(names, (idx(IMAGES), idx(LABELS)), strict=True))
    assert find(write(tmp_path, files | {f"{name}.gz": b"" for name in names})) == list(names)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_set_in_an_archive(tmp_path: Path, end: str) -> None:
    write(tmp_path / "set", {f"{name}{end}": content for name, content in PAIR.items()})
    for packed in ("zip", "gztar"):
        (scratch := tmp_path / packed).mkdir()
        tree = open_archive(
            Path(shutil.make_archive(str(tmp_path / "set"), packed, tmp_path / "set")), scratch
        )
        (block,) = Idx(tree, find(tree) or [], scratch).blocks()
        assert (np.stack(list(block.payload.read()))[..., 0] == IMAGES).all()


def test_what_is_no_set(tmp_path: Path) -> None:
    assert find(write(tmp_path, {"train-labels-idx1-ubyte": idx(LABELS), "images.txt": b""})) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"t10k-images-idx3-ubyte": idx(IMAGES)}, "bring both"),
        ({"t10k-labels-idx1-ubyte": idx(LABELS)}, "bring both"),
        ({"other-train-images-idx3-ubyte": idx(IMAGES)}, "more than one set"),
        ({"train-images.idx3-ubyte": idx(IMAGES)}, "more than one set"),
        ({"train-images-idx3-ubyte": idx(LABELS)}, "0x00000801, not 0x00000803"),
        ({"train-labels-idx1-ubyte": idx(IMAGES)}, "0x00000803, not 0x00000801"),
        ({"train-images-idx3-ubyte": b"\0\0\x0d\x03" + idx(IMAGES)[4:]}, "0x00000d03"),
        ({"train-images-idx3-ubyte": b""}, "begins with 0x,"),
        ({"train-images-idx3-ubyte": idx(IMAGES)[:9]}, "ends in its header"),
        ({"train-images-idx3-ubyte": idx(IMAGES)[:-1]}, "less than"),
        ({"train-images-idx3-ubyte": idx(IMAGES) + b"x"}, "more than"),
        ({"train-images-idx3-ubyte": b"\0\0\x08\x03" + b"\xff" * 12}, "79228162458924105385300197"),
        ({"train-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, 10**6, 4, 3)}, "less than"),
        ({"train-images-idx3-ubyte": idx(IMAGES[:, :0])}, "6×0×3"),
        ({"train-labels-idx1-ubyte": idx(LABELS[:5])}, "5 rows for 6 images"),
        (
            {"train-images-idx3-ubyte": idx(IMAGES[:0]), "train-labels-idx1-ubyte": idx(LABELS[:0])},
            "0 images",
        ),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, bytes], said: str, packed: str) -> None:
    files = {name + packed: content for name, content in {**PAIR, **changes}.items()}
    assert said in refusal(write(tmp_path, files))


@pytest.mark.parametrize(
    "raw",
    [b"\x1f\x8b", packed_idx(IMAGES)[:-9], packed_idx(IMAGES) + b"x"],
    ids=["no header", "cut off", "more behind"],
)
def test_a_damaged_gzip(tmp_path: Path, raw: bytes) -> None:
    files = {"train-images-idx3-ubyte.gz": raw, "train-labels-idx1-ubyte.gz": idx(LABELS)}
    assert "cannot be unpacked" in refusal(write(tmp_path, files))


def test_a_bomb_unpacks_no_further_than_its_header_says(tmp_path: Path) -> None:
    files = {f"{name}.gz": content for name, content in PAIR.items()}
    tree = write(tmp_path, files | {"train-images-idx3-ubyte.gz": idx(IMAGES) + bytes(2**26)})
    assert "more than" in refusal(tree)
    assert sum(path.stat().st_size for path in tmp_path.rglob("idx-*")) <= IMAGES.size


CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.none() | st.integers(0, 3), st.binary(max_size=6)),
    max_size=4,
)


def changed(sound: bytes, changes: list[tuple[float, int | None, bytes]]) -> bytes:
    for where, cut, put in changes:
        at = int(where * len(sound))
        sound = sound[:at] + put + sound[at + (len(put) if cut is None else cut) :]
    return sound


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.binary(max_size=60), st.builds(changed, st.just(idx(IMAGES)), CHANGES)),
    st.one_of(st.binary(max_size=60), st.builds(changed, st.just(idx(LABELS)), CHANGES)),
    st.one_of(st.none(), CHANGES),
)
def test_any_bytes(
    images: bytes, labels: bytes, packed: list[tuple[float, int | None, bytes]] | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        end = "" if packed is None else ".gz"
        if packed is not None:
            images = changed(gzip.compress(images, mtime=0), packed)
        for role, content in (
            ("images-idx3", images),
            ("labels-idx1", gzip.compress(labels, mtime=0) if end else labels),
        ):
            (Path(folder) / f"train-{role}-ubyte{end}").write_bytes(content)
        tree = FolderTree(Path(folder))
        tracemalloc.start()
        try:
            for block in Idx(tree, find(tree) or [], Path(folder) / "scratch").blocks():
                assert len(list(block.payload.read())) == len(block.names)
        except WinnowError as error:
            assert len(str(error).splitlines()) == 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2**25
