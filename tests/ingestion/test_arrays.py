"""Arrays in `.npz` and `.npy` files: by which names they are known, and what is refused."""

from __future__ import annotations

import io
import shutil
import tempfile
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dataset.ids import pixel_id
from stages.errors import WinnowError
from stages.ingestion.archives import open_archive
from stages.ingestion.arrays import Arrays, find, role_of
from stages.ingestion.source import BLOCK
from stages.ingestion.trees import FolderTree

GREY = np.arange(4 * 6 * 5).reshape(4, 6, 5).astype(np.uint8)
RGB = np.arange(4 * 6 * 5 * 3).reshape(4, 6, 5, 3).astype(np.uint8)
OWN = {
    "images": RGB,
    "labels": np.array([1, 0, 1, 0]),
    "split": np.array(["train", "train", "test", "test"]),
    "classes": np.array(["dog", "cat"]),
}
KERAS = {"x_train": GREY, "y_train": np.array([3, 1, 10, 1]), "x_test": GREY[:1], "y_test": np.array([2])}


def save(folder: Path, arrays: Mapping[str, Any], kind: str = "npz") -> FolderTree:
    """The arrays as `set.npz`, or as `.npy` files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        np.savez_compressed(folder / "set.npz", **arrays)
    else:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
    return FolderTree(folder)


def opened(tree: FolderTree) -> Arrays:
    names = find(tree)
    assert names is not None
    return Arrays(tree, names, Path(tempfile.mkdtemp(dir=tree.local(names[0]).parent)))


def rows(source: Arrays) -> list[tuple[str, str | None, str | None]]:
    blocks = list(source.blocks())
    assert all(len(block.payload) == len(block.names) <= BLOCK for block in blocks)
    return [row for block in blocks for row in zip(block.names, block.labels, block.splits, strict=True)]


def pixels(source: Arrays) -> list[Any]:
    return [item for block in source.blocks() for item in block.payload.read()]


def refusal(tree: FolderTree) -> str:
    with pytest.raises(WinnowError) as caught:
        list(opened(tree).blocks())
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(tree.shown)
    return message


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_the_projects_own_names(tmp_path: Path, kind: str) -> None:
    source = opened(save(tmp_path, OWN, kind))
    name = "set.npz" if kind == "npz" else "images.npy"
    assert rows(source) == [
        (f"{name}#0", "cat", "train"),
        (f"{name}#1", "dog", "train"),
        (f"{name}#2", "cat", "test"),
        (f"{name}#3", "dog", "test"),
    ]
    assert list(source.classes) == ["dog", "cat"]  # in the order given
    assert (source.count, source.kind, source.notes) == (4, f"arrays (.{kind})", [])
    assert [pixel_id(image) for image in pixels(source)] == [pixel_id(image) for image in RGB]


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_kerass_names(tmp_path: Path, kind: str) -> None:
    source = opened(save(tmp_path, KERAS, kind))
    train, test = ("set.npz/x_train", "set.npz/x_test") if kind == "npz" else ("x_train.npy", "x_test.npy")
    assert rows(source) == [
        (f"{train}#0", "3", "train"),
        (f"{train}#1", "1", "train"),
        (f"{train}#2", "10", "train"),
        (f"{train}#3", "1", "train"),
        (f"{test}#0", "2", "test"),
    ]
    assert list(source.classes) == ["1", "2", "3", "10"]  # numbers in the order of numbers
    assert source.kind.endswith("with train, test")
    assert [image.shape for image in pixels(source)] == [(6, 5, 1)] * 5


def test_medmnists_names(tmp_path: Path) -> None:
    arrays = {
        f"{split}_{role}": array
        for split in ("test", "val", "train")
        for role, array in (("images", RGB), ("labels", np.array([[0], [1], [1], [0]], np.uint8)))
    }
    found = rows(opened(save(tmp_path, arrays)))
    assert [split for _, _, split in found] == ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    assert [label for _, label, _ in found] == ["0", "1", "1", "0"] * 3


@pytest.mark.parametrize("names", [("X", "y"), ("data", "target"), ("Images", "Labels"), ("x", "targets")])
def test_plain_pairs(tmp_path: Path, names: tuple[str, str]) -> None:
    source = opened(save(tmp_path, {names[0]: GREY, names[1]: np.array(["b", "a", "", " b "])}))
    item = f"set.npz/{names[0]}"
    assert rows(source) == [
        (f"{item}#0", "b", None),
        (f"{item}#1", "a", None),
        (f"{item}#2", None, None),
        (f"{item}#3", "b", None),
    ]
    assert list(source.classes) == []  # text is known when it is read


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("X_train", ("images", "train")),
        ("train-labels", ("labels", "train")),
        ("y_valid", ("labels", "val")),
        ("dev_images", ("images", "val")),
        ("unlabeled_x", ("images", "unlabeled")),
        ("train_groups", ("groups", "train")),
        ("classes", ("classes", None)),
        ("split", ("splits", None)),
        ("split_train", None),
        ("train", None),
        ("x_train_extra", None),
        ("folder/images", None),
        ("", None),
    ],
)
def test_what_a_name_says(name: str, role: tuple[str, str | None] | None) -> None:
    assert role_of(name) == role


def test_a_split_without_labels(tmp_path: Path) -> None:
    source = opened(save(tmp_path, {**KERAS, "x_unlabeled": GREY[:1]}))
    assert rows(source)[-1] == ("set.npz/x_unlabeled#0", None, None)


def test_below_zero_is_no_label(tmp_path: Path) -> None:
    labels = np.array([1, -1, 0, -7])
    for arrays in ({**OWN, "labels": labels}, {"x_train": GREY, "y_train": labels}):
        found = rows(opened(save(tmp_path / str(len(arrays)), arrays)))
        assert [label is None for _, label, _ in found] == [False, True, False, True]
        assert None not in [split for _, _, split in found]  # it is said that nothing can be scored on them


def test_groups_and_weights(tmp_path: Path) -> None:
    columns = {"groups": np.array([7, 7, 8, 9]), "weights": np.array([1, 0.5, 2, 0], np.float32)}
    (block,) = opened(save(tmp_path, {**OWN, **columns})).blocks()
    assert block.groups == ["7", "7", "8", "9"]
    assert block.weights == [1, 0.5, 2, 0]


def test_what_the_user_should_know(tmp_path: Path) -> None:
    arrays = {
        "X": RGB.transpose(0, 3, 1, 2).astype(np.uint16),
        "y": np.arange(4),
        "extra": GREY,
        "y_val": GREY,
    }
    notes = opened(save(tmp_path, arrays)).notes
    assert any("channels come first" in note for note in notes)
    assert any("16-bit" in note for note in notes)
    assert "arrays not used: extra, y_val" in notes


def test_many_rows_come_in_blocks(tmp_path: Path) -> None:
    images = np.zeros((2 * BLOCK + 1, 2, 2), np.uint8)
    images[:, 0, 0] = np.arange(len(images)) % 251
    source = opened(save(tmp_path, {"x": images, "y": np.arange(len(images))}, "npy"))
    assert [len(block.names) for block in source.blocks()] == [BLOCK, BLOCK, 1]
    assert [int(label or -1) for _, label, _ in rows(source)[1:]] == list(range(1, len(images)))
    assert [image[0, 0, 0] for image in pixels(source)] == images[:, 0, 0].tolist()


def test_ten_thousand_classes(tmp_path: Path) -> None:
    images = np.zeros((10_000, 1, 1), np.uint8)
    for labels in (np.arange(10_000), np.arange(10_000).astype(str)):
        source = opened(save(tmp_path / labels.dtype.kind, {"x": images, "y": labels}, "npy"))
        assert [label for _, label, _ in rows(source)] == [str(label) for label in range(10_000)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "lacks labels"),
        ({"images": RGB[:0], "labels": np.zeros(0, int), "split": None}, "0 images"),
        ({"images": RGB.astype(np.float32) / 255}, "multiply them by 255"),
        ({"images": RGB.astype(np.int64)}, "save the images as uint8"),
        ({"images": RGB.reshape(4, -1)}, "4×90: reshape"),
        ({"images": RGB[..., :2]}, "4×6×5×2"),
        ({"images": np.zeros((4, 0, 8), np.uint8)}, "4×0×8"),
        ({"images": np.zeros((0, 2**14, 2**14), np.uint8)}, "pixels in each image"),
        ({"images": np.array([None] * 4)}, "a pickle"),
        ({"images": np.array(7, np.uint8)}, "single value"),
        ({"images": np.asfortranarray(RGB)}, "Fortran"),
        ({"images": np.zeros(4, [("a", "u1"), ("b", "u1")])}, "no plain values"),
        ({"labels": np.array([0, 1])}, "2 rows for 4 images"),
        ({"labels": np.eye(4)}, "argmax"),
        ({"labels": np.zeros((4, 1, 1), int)}, "4×1×1"),
        ({"labels": np.zeros(4)}, "save integers or text"),
        ({"labels": np.array([0, 1, 2, 0])}, "from 0 to 2"),
        ({"labels": np.array(["cat", None, "dog", "cat"])}, "a pickle"),
        ({"labels": np.array(["x" * 3000] * 4)}, "at most"),
        ({"split": np.array([0, 0, 1, 1])}, "save text"),
        ({"split": np.array(["train"])}, "1 rows for 4"),
        ({"weights": np.array(["1"] * 4)}, "save integers or numbers"),
        ({"classes": np.array(["cat", "cat"])}, "twice, 'cat'"),
        ({"classes": np.array(["cat", "../.."])}, "climbs"),
        ({"classes": np.array(["cat", ""])}, "entry 1: a blank"),
        ({"classes": np.array([["cat", "dog"]])}, "one row of class names"),
        ({"classes": np.array(["cat", object()], dtype=object)}, "a pickle"),
        ({"x": GREY}, "both the images"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], said: str, kind: str) -> None:
    arrays = {name: array for name, array in {**OWN, **changes}.items() if array is not None}
    assert said in refusal(save(tmp_path, arrays, kind))


def test_an_archive_without_images(tmp_path: Path) -> None:
    assert "lacks images and labels" in (said := refusal(save(tmp_path, {"labels": GREY, "b\na": GREY})))
    assert said.endswith("there is b\\na, labels")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("ran").touch, ())

    for kind in ("npz", "npy"):
        tree = save(tmp_path / kind, {**OWN, "labels": np.array([Bomb()] * 4, dtype=object)}, kind)
        assert "a pickle" in refusal(tree)
    assert not (tmp_path / "ran").exists()


def test_only_labels_of_known_classes_are_numbers(tmp_path: Path) -> None:
    """Text beside `classes` stands for itself, and may be a class of its own."""
    source = opened(save(tmp_path, {**OWN, "labels": np.array(["cat", "dog", "eel", "cat"])}))
    assert [label for _, label, _ in rows(source)] == ["cat", "dog", "eel", "cat"]
    assert list(source.classes) == ["dog", "cat"]


def test_what_is_found(tmp_path: Path) -> None:
    assert find(save(tmp_path / "npz", OWN)) == ["set.npz"]
    assert find(save(tmp_path / "npy", {**KERAS, "other": GREY}, "npy")) == [
        "x_test.npy",
        "x_train.npy",
        "y_test.npy",
        "y_train.npy",
    ]
    assert find(save(tmp_path / "other", {"weights": GREY}, "npy")) is None
    (tmp_path / "stray/class").mkdir(parents=True)
    assert find(save(tmp_path / "stray", {"data": GREY}, "npy")) is None
    assert find(save(tmp_path / "stray", {"features": GREY})) is None
    assert find(save(tmp_path / "alone", {"data": GREY}, "npy")) == ["data.npy"]


def test_arrays_in_an_archive(tmp_path: Path) -> None:
    for kind in ("npz", "npy"):
        save(tmp_path / kind, OWN, kind)
        for packed in ("zip", "gztar"):
            path = Path(shutil.make_archive(str(tmp_path / kind), packed, tmp_path / kind))
            (scratch := tmp_path / f"{kind}-{packed}").mkdir()
            tree = open_archive(path, scratch)
            source = Arrays(tree, find(tree) or [], scratch)
            assert (np.stack(pixels(source)) == RGB).all()
            assert [split for _, _, split in rows(source)] == ["train", "train", "test", "test"]


def test_one_set_has_to_be_chosen(tmp_path: Path) -> None:
    tree = save(tmp_path, KERAS)
    save(tmp_path, KERAS, "npy")
    with pytest.raises(WinnowError, match="leave one"):
        find(tree)
    for path in tmp_path.glob("*.npy"):
        path.unlink()
    (tmp_path / "b.npz").write_bytes(b"")
    with pytest.raises(WinnowError, match=r"b\.npz, set\.npz"):
        find(tree)


def contained(write: Any) -> None:
    """Read what `write(folder)` wrote: items or a WinnowError, in little memory."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        tracemalloc.start()
        try:
            tree = FolderTree(Path(folder))
            source = Arrays(tree, find(tree) or [], Path(folder) / "scratch")
            for block in source.blocks():
                assert len(list(block.payload.read())) == len(block.names)
        except WinnowError as error:
            assert len(str(error).splitlines()) == 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2**25


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(arrays: Mapping[str, Any], compressed: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


SOUND = [
    npz({"images": RGB[:2], "labels": np.array([0, 1]), "classes": np.array(["a", "b"])}, True),
    npz({"x_train": RGB[:2], "y_train": np.array(["a", "b"])}, False),
]
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.none() | st.integers(0, 3), st.binary(max_size=6)),
    max_size=4,
)


def changed(sound: bytes, changes: list[tuple[float, int | None, bytes]]) -> bytes:
    for where, cut, put in changes:
        at = int(where * len(sound))
        sound = sound[:at] + put + sound[at + (len(put) if cut is None else cut) :]
    return sound


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.builds(changed, st.sampled_from(SOUND), CHANGES)))
def test_any_bytes_as_npz(content: bytes) -> None:
    contained(lambda folder: (folder / "set.npz").write_bytes(content))


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.builds(changed, st.just(npy(RGB[:2])), CHANGES)),
    st.one_of(
        st.builds(changed, st.sampled_from([npy(np.array([0, 1])), npy(np.array(["a", "b"]))]), CHANGES),
        st.binary(min_size=8, max_size=8).map(lambda raw: npy(np.frombuffer(raw, "<U1"))),
    ),
)
def test_any_bytes_as_npy(images: bytes, labels: bytes) -> None:
    def write(folder: Path) -> None:
        (folder / "x.npy").write_bytes(images)
        (folder / "y.npy").write_bytes(labels)

    contained(write)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        ["|u1", "<u2", "|b1", "|O", "<U0", "<f4", "(2,3)u1", "u1,u1", "<M8[s]", "|V3", "x", "i" * 99]
    ),
    st.one_of(
        st.lists(st.integers(-2, 2**70), max_size=5).map(tuple),
        st.sampled_from(
            [(2, 6, 5), (10**18, 6, 5), (2, 10**9, 10**9), (True, 6, 5), "(" * 900, "1" * 3000, [2]]
        ),
    ),
    st.booleans(),
    st.booleans(),
)
def test_any_header(descr: str, shape: Any, fortran: bool, zipped: bool) -> None:
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}}}\n".encode()
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(60)

    def write(folder: Path) -> None:
        if not zipped:
            (folder / "x.npy").write_bytes(array)
            np.save(folder / "y.npy", np.array([0, 1]))
            return
        with zipfile.ZipFile(folder / "set.npz", "w") as archive:
            archive.writestr("x.npy", array)
            archive.writestr("y.npy", npy(np.array([0, 1])))

    contained(write)
